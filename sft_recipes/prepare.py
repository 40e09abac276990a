"""A resolved recipe to everything a trainer needs, short of the model: read, convert, supervise, count.

The same preparation serves `check`, `show` and training, so what they print is what is trained. Faults are collected over
all of the data and raised together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from .data import reading as data
from .data.reading import Conversation
from .data.retained import is_text, load_retained
from .evaluate import Question
from .recipe import Recipe, RecipeError, SupervisionError, sources
from .rows import Supervision, balance, build_rows, with_weights
from .shelf import collected, picked
from .turns import Supervisor, Turn, stop_ids
from .turns.dataset import supervise_all
from .turns.parallel import supervise_many
from .turns.turn import collector_paused
from .weights import load_tokenizer
from .weights.templates import fingerprint

MEASURED = 200  # conversations or texts of the data to be kept, at most


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


@dataclass
class Prepared:
    """What a trainer needs beside the model.

    Attributes:
        recipe: resolved: scale chosen, overrides applied.
        tokenizer: with its chat template.
        train, held_out: conversations, turns, rows, and the account of them.
        questions: every learned turn of the held-out conversations.
        stop_ids: every stop token found in either part.
        retained: what is measured of the data to be kept; `None` where the recipe names none.
        replayed: what is trained of them, beside `train`; `None` without a `mix`.
    """

    recipe: Recipe
    tokenizer: Any
    train: Part
    held_out: Part
    questions: list[Question]
    stop_ids: set[int]
    retained: Part | None = None
    replayed: Part | None = None

    @cached_property
    def rows(self) -> Sequence[dict[str, Any]]:
        """Everything that is trained: `train`, then what is replayed; all with `loss_weights` where any has them."""
        if self.replayed is None or not self.replayed.rows:
            return self.train.rows
        parts = (self.train.rows, self.replayed.rows)
        rows = chain(*parts)
        return collected(map(with_weights, rows) if any("loss_weights" in row for part in parts for row in part[:1]) else rows)

    @property
    def supervised_tokens(self) -> int:
        """Of these rows."""
        return sum(part.supervision.supervised_tokens for part in (self.train, self.replayed) if part)

    @property
    def replay(self) -> dict[str, Any]:
        """What is replayed, in numbers; its `share` is that of the supervised tokens. Empty without a `mix`."""
        if self.replayed is None:
            return {}
        account = self.replayed.supervision
        share = round(account.supervised_tokens / self.supervised_tokens, 4)
        counts = {"conversations": account.conversations, "supervised_tokens": account.supervised_tokens}
        return {"mix": self.recipe.mix, **counts, "share": share}

    @property
    def chat_template_hash(self) -> str:
        """SHA-256 of the chat template, byte for byte."""
        return fingerprint(self.tokenizer.chat_template)


@collector_paused()
def prepare(
    trainer_class: Any,
    recipe: Recipe,
    max_length: int | None,
    train_dataset: Iterable[dict] | None = None,
    eval_dataset: Iterable[dict] | None = None,
    sample: int | None = None,
) -> Prepared:
    """Read and supervise a recipe's data.

    Args:
        trainer_class: supplies the hook `conversation`.
        recipe: resolved.
        max_length: a turn fits when its prompt and itself have at most this many tokens; of the others `recipe.overlong` decides.
        train_dataset, eval_dataset: rows in memory that stand in for the recipe's own data.
        sample: of each part at most this many conversations are supervised, evenly spread; all are read and their shape checked.

    Raises:
        RecipeError: every fault of tokenizer and data, together; or supervised tokens that are neither trained nor listed as lost.
    """
    faults: list[str] = []
    tokenizer = _or_faults(faults, load_tokenizer, recipe)
    conversations = _or_faults(faults, _conversations, trainer_class, recipe, train_dataset, eval_dataset)
    data.raise_faults(faults)
    parts = [
        _part(_spread(c, sample), len(c), which, tokenizer, max_length, faults)
        for c, which in zip(conversations, (recipe, _judged(recipe)), strict=True)
    ]
    if not faults:
        faults += [_nothing_left(name, p) for name, p in zip(("training", "held-out"), parts, strict=True) if not p.rows]
    data.raise_faults(faults)
    kept = _to_be_kept(trainer_class, recipe, tokenizer, max_length, parts[0].supervision.supervised_tokens, sample)
    stops = {stop for part in parts for turns in part.turns for stop in stop_ids(turns)}
    return Prepared(recipe, tokenizer, parts[0], parts[1], list(_questions(parts[1])), stops, *kept)


def prepare_held_out(trainer_class: Any, recipe: Recipe, max_length: int | None) -> Prepared:
    """Read and supervise the held-out conversations alone, as `prepare` does; `train` is empty.

    Args:
        trainer_class, recipe, max_length: as for `prepare`.

    Raises:
        RecipeError: every fault of tokenizer and held-out data, together.
    """
    faults: list[str] = []
    tokenizer = _or_faults(faults, load_tokenizer, recipe)
    conversations = _or_faults(faults, _conversations, trainer_class, recipe, None, None)
    data.raise_faults(faults)
    part = _part(conversations[1], len(conversations[1]), _judged(recipe), tokenizer, max_length, faults)
    data.raise_faults(faults or ([] if part.rows else [_nothing_left("held-out", part)]))
    stops = {stop for turns in part.turns for stop in stop_ids(turns)}
    return Prepared(recipe, tokenizer, Part(0, [], [], [], Supervision()), part, list(_questions(part)), stops)


def _judged(recipe: Recipe) -> Recipe:
    """Held-out rows are the same whatever carries loss in training."""
    return replace(recipe, mask="completion", loss_per="token")


def _or_faults(faults: list[str], work: Callable[..., Any], *args: Any) -> Any:
    """What `work` gives; its faults join the others, so that all are reported together."""
    try:
        return work(*args)
    except RecipeError as error:
        faults += error.faults
        return None


def _conversations(
    trainer_class: Any, recipe: Recipe, train_dataset: Iterable[dict] | None, eval_dataset: Iterable[dict] | None
) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
    convert = trainer_class.conversation
    given = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
    in_memory = {name: data.load_rows(rows, name, convert) for name, rows in given.items() if rows is not None}
    train = in_memory["train_dataset"] if train_dataset is not None else data.load(sources(recipe.data), convert)
    if eval_dataset is not None:
        return train, in_memory["eval_dataset"]
    if isinstance(recipe.held_out, int):
        return data.split(train, recipe.held_out)
    return train, data.load(sources(recipe.held_out), convert)


def _to_be_kept(
    trainer_class: Any, recipe: Recipe, tokenizer: Any, max_length: int | None, learned: int, sample: int | None
) -> tuple[Part | None, Part | None]:
    """What of the `retain` data is measured, and what is replayed: as many supervised tokens as make `mix` of all.

    Which conversations these are depends on what they say alone, so that a run with replay is measured on the same as one without.

    Raises:
        RecipeError: every fault of these data.
    """
    if recipe.retain is None:
        return None, None
    faults: list[str] = []
    pool, measured = data.split(load_retained(sources(recipe.retain), trainer_class.conversation), MEASURED)
    retained = _part(measured, len(measured), _judged(recipe), tokenizer, max_length, faults)
    if not faults and not retained.rows:
        faults.append(_nothing_left("retained", retained))
    data.raise_faults(faults)
    if not recipe.mix:
        return retained, None
    pool, wanted, taken = sorted(_spread(pool, sample), key=data.fingerprint), recipe.mix / (1 - recipe.mix) * learned, 0
    replayed: list[Conversation] = []
    for conversation, turns in zip(pool, _supervised(pool, recipe, tokenizer, max_length), strict=True):
        if taken >= wanted:
            break
        replayed.append(conversation)
        taken += sum(len(turn.completion_ids) for turn in turns) if isinstance(turns, list) else 0
    part = _part(replayed, len(replayed), recipe, tokenizer, max_length, faults)
    data.raise_faults(faults)
    return retained, part


def _spread(conversations: Sequence[Conversation], sample: int | None) -> Sequence[Conversation]:
    """At most `sample` of the conversations, evenly spread over all of them."""
    if sample is None or len(conversations) <= sample:
        return conversations
    return picked(conversations, [i * len(conversations) // sample for i in range(sample)])


def cache_folder() -> Path:
    """Where supervised turns are kept: beside the datasets cache, so `HF_DATASETS_CACHE` and `HF_HOME` move it."""
    from datasets import config

    return Path(config.HF_DATASETS_CACHE) / "sft_recipes"


def _part(
    conversations: Sequence[Conversation], read: int, recipe: Recipe, tokenizer: Any, max_length: int | None, faults: list[str]
) -> Part:
    found = _supervised(conversations, recipe, tokenizer, max_length)
    wrong: list[str] = []
    others: list[str] = []
    built = _or_faults(others, build_rows, _learned(conversations, found, wrong), max_length, recipe.mask, recipe.loss_per, recipe.overlong)
    faults += wrong + others
    rows, supervision = built or ([], Supervision())
    if built:
        _or_faults(faults, balance, (turns for turns in found if isinstance(turns, list)), rows, supervision, recipe.mask)
    return Part(read, conversations, [] if wrong else found, rows, supervision)


def _learned(conversations: Sequence[Conversation], found: Sequence[Any], faults: list[str]) -> Iterator[tuple[str, list[Turn]]]:
    """Where each conversation stands, and its turns; of one that has none, what is wrong with it joins the faults."""
    for conversation, turns in zip(conversations, found, strict=True):
        if isinstance(turns, SupervisionError):
            faults += (f"{conversation['source']}, {fault}" for fault in turns.faults)
        else:
            yield conversation["source"], turns


def _supervised(conversations: Sequence[Conversation], recipe: Recipe, tokenizer: Any, max_length: int | None) -> Sequence[Any]:
    """Each conversation's turns, or the `SupervisionError` that says what is wrong with it."""
    options = dict(last_turn_only=recipe.last_turn_only, allow_control_tokens=recipe.allow_control_tokens)
    supervisor = Supervisor(tokenizer, **options, **recipe.template_kwargs)
    if not isinstance(conversations, list):  # many, on disk, and no plain texts
        return supervise_many(supervisor, ((c["messages"], c["tools"]) for c in conversations), len(conversations), cache_folder())
    spoken = [(c["messages"], c["tools"]) for c in conversations if not is_text(c)]
    found = iter(supervise_all(supervisor, spoken, cache_folder()))
    return [_text_turns(c, tokenizer, max_length) if is_text(c) else next(found) for c in conversations]


def _text_turns(text: Conversation, tokenizer: Any, max_length: int | None) -> list[Turn]:
    """A plain text, learned from its second token on, in pieces of `max_length` tokens."""
    ids = tokenizer(text["messages"][0]["content"])["input_ids"]
    size = max_length or len(ids) or 1
    pieces = (ids[start : start + size] for start in range(0, len(ids), size))
    return [Turn(piece[:1], piece[1:], 0) for piece in pieces if len(piece) > 1]


def _nothing_left(name: str, part: Part) -> str:
    """The fault of a part without rows, with what lets it have some."""
    dropped = part.supervision.dropped
    why = f": {dropped[0]}; --max_length {part.supervision.longest} keeps all" if dropped else ""
    return f"no {name} conversation is left{why}"


def _questions(part: Part) -> Iterable[Question]:
    """Every learned turn, with the message it came from."""
    for conversation, turns in zip(part.conversations, part.turns, strict=True):
        messages = conversation["messages"]
        for turn in turns:
            index = turn.message_index
            asked = str(messages[index - 1].get("content", "")) if index else ""
            user = next((str(m.get("content", "")) for m in reversed(messages[:index]) if m["role"] == "user"), "")
            tests = {"tests": conversation["tests"]} if "tests" in conversation else {}
            expected = {**messages[index], "tools": conversation["tools"], "asked": asked, **tests}
            yield Question(conversation["source"], index, asked, turn.prompt_ids, expected, user)
