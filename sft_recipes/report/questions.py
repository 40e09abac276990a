"""Generations to the same question side by side, with the reference; and which of them a page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..excerpt import right, spoken
from .wording import cut

MOST = 200  # questions on a page
ASKED, REPLY, PROMPT = 500, 700, 1500  # characters of each text

CHANGES = {"right": "right", "wrong": "wrong", "gained": "became right", "lost": "became wrong"}
DIFFERENCES = {"right": "all right", "wrong": "all wrong", "differ": "differ"}


class Reply(NamedTuple):
    """What a model said.

    Attributes:
        text: without its stop token, cut where it is long.
        stop: the stop token, empty where it was cut at the length limit.
        right: whether the primary score is 1; `None` where that is no question of right and wrong.
        scores: of this reply, as text.
    """

    text: str
    stop: str
    right: bool | None
    scores: str


@dataclass(frozen=True)
class Question:
    """A held-out turn, and a reply of each column that has one; `kinds` are the filters that show it."""

    source: str
    message_index: int
    asked: str
    prompt: str
    reference: str
    replies: dict[str, Reply]
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shown:
    """The questions of a page.

    Attributes:
        columns: whose replies stand side by side, and what stands above each.
        questions: those that are shown.
        total: how many there are.
        filters: for each kind its name in words, how many are shown, how many there are; empty where nothing is right or wrong.
    """

    columns: dict[str, str]
    questions: list[Question]
    total: int
    filters: list[tuple[str, str, int, int]]


def stages(samples: Sequence[Mapping[str, Any]], names: Mapping[str, str], primary: str, stops: Sequence[str]) -> Shown:
    """The replies of one run, before training and after; `names` has its stages, in order, and what a person calls them."""
    columns = {stage: [sample for sample in samples if sample["stage"] == stage] for stage in names}
    columns = {stage: some for stage, some in columns.items() if some}
    return _shown(columns, {stage: names[stage] for stage in columns}, primary, stops, CHANGES)


def runs(columns: Mapping[str, Sequence[Mapping[str, Any]]], primary: str, stops: Sequence[str]) -> Shown:
    """The replies that several runs gave after training."""
    after = {name: [sample for sample in samples if sample["stage"] == "after"] for name, samples in columns.items()}
    return _shown(after, {name: name for name in after}, primary, stops, DIFFERENCES)


def _shown(columns: Mapping[str, Any], headings: dict[str, str], primary: str, stops: Sequence[str], names: Mapping[str, str]) -> Shown:
    asked: dict[tuple[str, int, str], dict[str, Any]] = {}
    for column, samples in columns.items():
        for sample in samples:
            asked.setdefault((sample["source"], sample["message_index"], sample["asked"]), {})[column] = sample
    found = [(key, replies, _kinds(replies, primary, names is CHANGES)) for key, replies in asked.items()]
    chosen = spread([kind for *_, kind in found])
    questions = [_question(replies, kind, primary, stops) for _, replies, kind in (found[i] for i in chosen)]
    filters = []
    if any(kind for *_, kind in found):
        for kind, name in names.items():
            filters.append((kind, name, sum(kind in q.kinds for q in questions), sum(kind in k for *_, k in found)))
    return Shown(headings, questions, len(found), filters)


def _kinds(replies: Mapping[str, Any], primary: str, over_time: bool) -> tuple[str, ...]:
    known = {column: right(sample["scores"], primary) for column, sample in replies.items()}
    told = {column: found for column, found in known.items() if found is not None}
    return _changed(told) if over_time else _differing(told)


def _changed(told: Mapping[str, bool]) -> tuple[str, ...]:
    """What training has done: the reply after it is right or wrong, and may not have been so before."""
    if "after" not in told:
        return ()
    now, was = told["after"], told.get("before", told["after"])
    return ("right" if now else "wrong", *(("gained" if now else "lost",) if was != now else ()))


def _differing(told: Mapping[str, bool]) -> tuple[str, ...]:
    if not told:
        return ()
    return ("right",) if all(told.values()) else ("differ",) if any(told.values()) else ("wrong",)


def spread(kinds: Sequence[tuple[str, ...]], most: int = MOST) -> list[int]:
    """Which questions are shown, in order: at most so many, of every kind its part, the rare ones all, each spread over the data."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(i)
    found: list[int] = []
    for left, group in zip(range(len(groups), 0, -1), sorted(groups.values(), key=len), strict=True):
        take = min(len(group), (most - len(found)) // left)
        found += [group[i * len(group) // take] for i in range(take)]
    return sorted(found)


def _question(replies: Mapping[str, Any], kinds: tuple[str, ...], primary: str, stops: Sequence[str]) -> Question:
    one = next(iter(replies.values()))
    return Question(
        source=str(one["source"]),
        message_index=one["message_index"],
        asked=cut(str(one["asked"]), ASKED),
        prompt=cut(str(one.get("prompt", "")), PROMPT),
        reference=cut(spoken(one.get("expected") or {}), REPLY),
        replies={column: _reply(sample, primary, stops) for column, sample in replies.items()},
        kinds=kinds,
    )


def _reply(sample: Mapping[str, Any], primary: str, stops: Sequence[str]) -> Reply:
    text, scores = str(sample["reply"]), sample["scores"]
    stop = next((stop for stop in stops if stop and text.endswith(stop)), "") if scores.get("stops", 1.0) == 1.0 else ""
    said = ", ".join(f"{name} {value:.3g}" for name, value in scores.items())
    return Reply(cut(text.removesuffix(stop), REPLY), stop, right(scores, primary), said)
