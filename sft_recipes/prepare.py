"""A resolved recipe to everything a trainer needs, short of the model: read, convert, supervise, count.

The same preparation serves `check`, `show` and training, so what they print is what is trained. Faults are collected over
all of the data and raised together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from . import data
from .data import Conversation
from .evaluate import Question
from .recipe import Recipe, RecipeError, SupervisionError, sources
from .rows import Supervision, build_rows
from .turns import Supervisor, Turn, stop_ids
from .weights import load_tokenizer


@dataclass
class Part:
    """The training or the held-out conversations, at every stage."""

    conversations: list[Conversation]
    turns: list[list[Turn]]
    rows: list[dict[str, Any]]
    supervision: Supervision

    @property
    def hash(self) -> str:
        """A hash of everything the conversations say, in order."""
        return hashlib.sha256("".join(map(data.fingerprint, self.conversations)).encode()).hexdigest()


@dataclass
class Prepared:
    """What a trainer needs beside the model.

    Attributes:
        recipe: resolved: scale chosen, overrides applied.
        tokenizer: with its chat template.
        train, held_out: conversations, turns, rows, and the account of them.
        questions: every learned turn of the held-out conversations.
        stop_ids: every stop token found in either part.
    """

    recipe: Recipe
    tokenizer: Any
    train: Part
    held_out: Part
    questions: list[Question]
    stop_ids: set[int]


def prepare(
    trainer_class: Any,
    recipe: Recipe,
    max_length: int | None,
    train_dataset: Iterable[dict] | None = None,
    eval_dataset: Iterable[dict] | None = None,
) -> Prepared:
    """Read and supervise a recipe's data.

    Args:
        trainer_class: supplies the hooks `conversation` and `render`.
        recipe: resolved.
        max_length: conversations longer than this many tokens are dropped and listed.
        train_dataset, eval_dataset: rows in memory that stand in for the recipe's own data.

    Raises:
        RecipeError: every fault of tokenizer and data, together.
    """
    faults: list[str] = []
    tokenizer = _or_faults(faults, load_tokenizer, recipe)
    conversations = _or_faults(faults, _conversations, trainer_class, recipe, train_dataset, eval_dataset)
    data.raise_faults(faults)
    train, held_out = conversations
    parts = [_part(c, trainer_class, recipe, tokenizer, max_length, faults) for c in (train, held_out)]
    if not faults:
        faults += [f"no {name} conversation is left" for name, p in zip(("training", "held-out"), parts, strict=True) if not p.rows]
    data.raise_faults(faults)
    stops = {stop for part in parts for turns in part.turns for stop in stop_ids(turns)}
    return Prepared(recipe, tokenizer, parts[0], parts[1], list(_questions(parts[1])), stops)


def _or_faults(faults: list[str], work: Callable[..., Any], *args: Any) -> Any:
    """What `work` gives; its faults join the others, so that all are reported together."""
    try:
        return work(*args)
    except RecipeError as error:
        faults += error.faults
        return None


def _conversations(
    trainer_class: Any, recipe: Recipe, train_dataset: Iterable[dict] | None, eval_dataset: Iterable[dict] | None
) -> tuple[list[Conversation], list[Conversation]]:
    convert = trainer_class.conversation
    given = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
    in_memory = {name: data.load_rows(rows, name, convert) for name, rows in given.items() if rows is not None}
    train = in_memory["train_dataset"] if train_dataset is not None else data.load(sources(recipe.data), convert)
    if eval_dataset is not None:
        return train, in_memory["eval_dataset"]
    if isinstance(recipe.held_out, int):
        return data.split(train, recipe.held_out)
    return train, data.load(sources(recipe.held_out), convert)


def _part(
    conversations: list[Conversation],
    trainer_class: Any,
    recipe: Recipe,
    tokenizer: Any,
    max_length: int | None,
    faults: list[str],
) -> Part:
    supervisor, turns = Supervisor(tokenizer, **recipe.template_kwargs), []
    for conversation in tqdm(conversations, desc="supervising", disable=None, delay=2, leave=False):
        rendered = trainer_class.render(conversation)
        try:
            turns.append(supervisor.turns(rendered["messages"], rendered["tools"]))
        except SupervisionError as error:
            faults += [f"{conversation['source']}, {fault}" for fault in error.faults]
    supervised = zip([c["source"] for c in conversations], turns, strict=not faults)
    return Part(conversations, turns, *build_rows(supervised, max_length))


def _questions(part: Part) -> Iterable[Question]:
    """Every learned turn, with the original message it came from: the n-th learned one on either side of `render`."""
    for conversation, turns in zip(part.conversations, part.turns, strict=True):
        learned = [i for i, m in enumerate(conversation["messages"]) if m["role"] == "assistant" and m.get("train", True)]
        for index, turn in zip(learned, turns, strict=True):
            messages = conversation["messages"]
            expected = {**messages[index], "tools": conversation["tools"]}
            asked = str(messages[index - 1].get("content", "")) if index else ""
            yield Question(conversation["source"], index, asked, turn.prompt_ids, expected)
