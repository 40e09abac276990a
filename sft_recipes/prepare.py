"""A resolved recipe to everything a trainer needs, short of the model: read, convert, supervise, count.

The same preparation serves `check`, `show` and training, so what they print is what is trained. Faults are collected over
all of the data and raised together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

from .data import reading as data
from .data.reading import Conversation
from .data.retained import load_retained
from .data.streams import stream, stream_of
from .data.windows import Windows
from .evaluate import Question
from .parts import Part, or_faults, part_of, supervised
from .recipe import Recipe, sources
from .rows import Supervision, with_weights
from .shelf import collected, picked
from .turns import stop_ids
from .turns.turn import collector_paused
from .weights import load_tokenizer
from .weights.templates import fingerprint

MEASURED = 200  # conversations or texts of the data to be kept, at most


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
        stream: where `train` is the first window of a stream, what reads the others.
    """

    recipe: Recipe
    tokenizer: Any
    train: Part
    held_out: Part
    questions: list[Question]
    stop_ids: set[int]
    retained: Part | None = None
    replayed: Part | None = None
    stream: Windows | None = None

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
    """Read and supervise a recipe's data; of a stream the first window.

    Args:
        trainer_class: supplies the hook `conversation`.
        recipe: resolved.
        max_length: a turn fits when its prompt and itself have at most this many tokens; of the others `recipe.overlong` decides.
        train_dataset, eval_dataset: rows in memory, or a stream of them, that stand in for the recipe's own data.
        sample: of each part at most this many conversations are supervised, evenly spread; all are read and their shape checked.

    Raises:
        RecipeError: every fault of tokenizer and data, together; or supervised tokens that are neither trained nor listed as lost.
    """
    faults: list[str] = []
    tokenizer = or_faults(faults, load_tokenizer, recipe)
    windows = or_faults(faults, _windows, trainer_class, recipe, train_dataset) if recipe.streaming else None
    conversations = or_faults(faults, _conversations, trainer_class, recipe, windows, train_dataset, eval_dataset)
    data.raise_faults(faults)
    parts = [
        part_of(_spread(c, sample), len(c), which, tokenizer, max_length, faults)
        for c, which in zip(conversations, (recipe, _judged(recipe)), strict=True)
    ]
    if not faults:
        faults += [_nothing_left(name, p) for name, p in zip(("training", "held-out"), parts, strict=True) if not p.rows]
    data.raise_faults(faults)
    kept = _to_be_kept(trainer_class, recipe, tokenizer, max_length, parts[0].supervision.supervised_tokens, sample)
    stops = {stop for part in parts for turns in part.turns for stop in stop_ids(turns)}
    return Prepared(recipe, tokenizer, parts[0], parts[1], list(_questions(parts[1])), stops, *kept, windows)


def prepare_held_out(trainer_class: Any, recipe: Recipe, max_length: int | None) -> Prepared:
    """Read and supervise the held-out conversations alone, as `prepare` does; `train` is empty.

    Args:
        trainer_class, recipe, max_length: as for `prepare`.

    Raises:
        RecipeError: every fault of tokenizer and held-out data, together.
    """
    faults: list[str] = []
    tokenizer = or_faults(faults, load_tokenizer, recipe)
    windows = or_faults(faults, _windows, trainer_class, recipe, None) if recipe.streaming else None
    conversations = or_faults(faults, _conversations, trainer_class, recipe, windows, None, None)
    data.raise_faults(faults)
    part = part_of(conversations[1], len(conversations[1]), _judged(recipe), tokenizer, max_length, faults)
    data.raise_faults(faults or ([] if part.rows else [_nothing_left("held-out", part)]))
    stops = {stop for turns in part.turns for stop in stop_ids(turns)}
    return Prepared(recipe, tokenizer, Part(0, [], [], [], Supervision()), part, list(_questions(part)), stops)


def _judged(recipe: Recipe) -> Recipe:
    """Held-out rows are the same whatever carries loss in training."""
    return replace(recipe, mask="completion", loss_per="token")


def _windows(trainer_class: Any, recipe: Recipe, train_dataset: Iterable[dict] | None) -> Windows:
    """The training data as a stream, of which nothing has been read yet."""
    faults: list[str] = []
    rows = stream(sources(recipe.data), faults) if train_dataset is None else stream_of(train_dataset, "train_dataset", faults)
    return Windows(rows, trainer_class.conversation, faults)


def _conversations(
    trainer_class: Any,
    recipe: Recipe,
    windows: Windows | None,
    train_dataset: Iterable[dict] | None,
    eval_dataset: Iterable[dict] | None,
) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
    """Those to train on, of a stream the first window, and the ones held out, which a stream never trains later either."""
    convert = trainer_class.conversation
    given = {"train_dataset": None if windows else train_dataset, "eval_dataset": eval_dataset}
    in_memory = {name: data.load_rows(rows, name, convert) for name, rows in given.items() if rows is not None}
    if windows:
        train: Sequence[Conversation] = windows.read().conversations
    else:
        train = in_memory["train_dataset"] if train_dataset is not None else data.load(sources(recipe.data), convert)
    if eval_dataset is not None:
        return train, in_memory["eval_dataset"]
    if isinstance(recipe.held_out, int):
        train, held_out = data.split(train, recipe.held_out)
        if windows:
            windows.held_out = {data.fingerprint(conversation) for conversation in held_out}
        return train, held_out
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
    retained = part_of(measured, len(measured), _judged(recipe), tokenizer, max_length, faults)
    if not faults and not retained.rows:
        faults.append(_nothing_left("retained", retained))
    data.raise_faults(faults)
    if not recipe.mix:
        return retained, None
    pool, wanted, taken = sorted(_spread(pool, sample), key=data.fingerprint), recipe.mix / (1 - recipe.mix) * learned, 0
    replayed: list[Conversation] = []
    for conversation, turns in zip(pool, supervised(pool, recipe, tokenizer, max_length), strict=True):
        if taken >= wanted:
            break
        replayed.append(conversation)
        taken += sum(len(turn.completion_ids) for turn in turns) if isinstance(turns, list) else 0
    part = part_of(replayed, len(replayed), recipe, tokenizer, max_length, faults)
    data.raise_faults(faults)
    return retained, part


def _spread(conversations: Sequence[Conversation], sample: int | None) -> Sequence[Conversation]:
    """At most `sample` of the conversations, evenly spread over all of them."""
    if sample is None or len(conversations) <= sample:
        return conversations
    return picked(conversations, [i * len(conversations) // sample for i in range(sample)])


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
