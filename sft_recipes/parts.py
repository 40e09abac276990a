"""Conversations to a part of the data: supervised, as rows, with the account of them, whichever part it is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .data import reading as data
from .data.reading import Conversation
from .data.retained import is_text
from .recipe import Recipe, RecipeError, SupervisionError
from .rows import Supervision, balance, build_rows
from .turns import Supervisor, Turn
from .turns.dataset import supervise_all
from .turns.parallel import supervise_many


@dataclass
class Part:
    """The training or the held-out conversations, at every stage; on disk where they are many.

    Attributes:
        read: how many conversations the source has, where only a sample of them is here.
    """

    read: int
    conversations: Sequence[Conversation]
    turns: Sequence[list[Turn]]
    rows: Sequence[dict[str, Any]]
    supervision: Supervision

    @property
    def hash(self) -> str:
        """A hash of everything the conversations say, in order, and of their tests."""
        digest = hashlib.sha256()
        for c in self.conversations:
            digest.update((data.fingerprint(c) + (repr(c["tests"]) if "tests" in c else "")).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def or_faults(faults: list[str], work: Callable[..., Any], *args: Any) -> Any:
    """What `work` gives; its faults join the others, so that all are reported together."""
    try:
        return work(*args)
    except RecipeError as error:
        faults += error.faults
        return None


def cache_folder() -> Path:
    """Where supervised turns are kept: beside the datasets cache, so `HF_DATASETS_CACHE` and `HF_HOME` move it."""
    from datasets import config

    return Path(config.HF_DATASETS_CACHE) / "sft_recipes"


def part_of(
    conversations: Sequence[Conversation],
    read: int,
    recipe: Recipe,
    tokenizer: Any,
    max_length: int | None,
    faults: list[str],
    kept: bool = True,
) -> Part:
    """Supervise conversations, make rows of them, and count what became of every token.

    Args:
        conversations: as `data` gives them.
        read: how many their source has.
        recipe, tokenizer: what is learned, and in which template.
        max_length: as for `build_rows`.
        faults: what is wrong is appended here, each with file and line.
        kept: whether the turns are kept in the cache for the next time.
    """
    found = supervised(conversations, recipe, tokenizer, max_length, kept)
    wrong: list[str] = []
    others: list[str] = []
    built = or_faults(others, build_rows, _learned(conversations, found, wrong), max_length, recipe.mask, recipe.loss_per, recipe.overlong)
    faults += wrong + others
    rows, supervision = built or ([], Supervision())
    if built:
        or_faults(faults, balance, (turns for turns in found if isinstance(turns, list)), rows, supervision, recipe.mask)
    return Part(read, conversations, [] if wrong else found, rows, supervision)


def _learned(conversations: Sequence[Conversation], found: Sequence[Any], faults: list[str]) -> Iterator[tuple[str, list[Turn]]]:
    """Where each conversation stands, and its turns; of one that has none, what is wrong with it joins the faults."""
    for conversation, turns in zip(conversations, found, strict=True):
        if isinstance(turns, SupervisionError):
            faults += (f"{conversation['source']}, {fault}" for fault in turns.faults)
        else:
            yield conversation["source"], turns


def supervised(
    conversations: Sequence[Conversation], recipe: Recipe, tokenizer: Any, max_length: int | None, kept: bool = True
) -> Sequence[Any]:
    """Each conversation's turns, or the `SupervisionError` that says what is wrong with it; `kept` as for `part_of`."""
    options = dict(last_turn_only=recipe.last_turn_only, allow_control_tokens=recipe.allow_control_tokens)
    supervisor = Supervisor(tokenizer, **options, **recipe.template_kwargs)
    if not isinstance(conversations, list):  # many, on disk, and no plain texts
        return supervise_many(supervisor, ((c["messages"], c["tools"]) for c in conversations), len(conversations), cache_folder())
    spoken = [(c["messages"], c["tools"]) for c in conversations if not is_text(c)]
    found = iter(supervise_all(supervisor, spoken, cache_folder() if kept else None, quiet=not kept))
    return [_text_turns(c, tokenizer, max_length) if is_text(c) else next(found) for c in conversations]


def _text_turns(text: Conversation, tokenizer: Any, max_length: int | None) -> list[Turn]:
    """A plain text, learned from its second token on, in pieces of `max_length` tokens."""
    ids = tokenizer(text["messages"][0]["content"])["input_ids"]
    size = max_length or len(ids) or 1
    pieces = (ids[start : start + size] for start in range(0, len(ids), size))
    return [Turn(piece[:1], piece[1:], 0) for piece in pieces if len(piece) > 1]
