"""Columns in and out: separate rows end to end, and packed rows made of them.

Each tree is laid out depth-first, so that what follows from a token stands in one stretch behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from .account import IGNORED
from .forest import SHARED, Node


@dataclass
class Sequences:
    """Separate rows, end to end.

    Attributes:
        starts: int64 `(rows + 1,)`, where each row begins in the columns, and their end.
        input_ids: int32 `(tokens,)`.
        labels: int32 `(tokens,)`; never on the first token of a row, which nothing predicts.
        weights: float32 `(tokens,)`, if the rows have them.
        owners: each row's conversation, an index into `sources`.
        sources: `file:line` of each conversation, once.
    """

    starts: np.ndarray
    input_ids: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None
    owners: list[int]
    sources: list[str]

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]]) -> Sequences:
        """From rows as `build_rows` gives them."""
        starts = np.cumsum([0, *(len(row["input_ids"]) for row in rows)], dtype=np.int64)
        input_ids, labels = (_column(rows, name, np.int32, starts[-1]) for name in ("input_ids", "labels"))
        labels[starts[:-1]] = IGNORED
        weights = _column(rows, "loss_weights", np.float32, starts[-1]) if rows and "loss_weights" in rows[0] else None
        numbers: dict[str, int] = {}
        owners = [numbers.setdefault(row["source"], len(numbers)) for row in rows]
        return cls(starts, input_ids, labels, weights, owners, list(numbers))

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return np.diff(self.starts).tolist()

    def contexts(self) -> list[bytes]:
        """What each row may share, for `plant`: the tokens before its first label."""
        ordered = self.input_ids.astype(">u4")
        labelled = np.append(np.flatnonzero(self.labels != IGNORED), self.starts[-1])
        ends = np.minimum(labelled[np.searchsorted(labelled, self.starts[:-1])], self.starts[1:])
        return [ordered[start:end].tobytes() for start, end in zip(self.starts[:-1].tolist(), ends.tolist(), strict=True)]


def _column(rows: Sequence[dict[str, Any]], name: str, dtype: type, tokens: int) -> np.ndarray:
    return np.fromiter(chain.from_iterable(row[name] for row in rows), dtype, tokens)


def lay_out(sequences: Sequences, packed: Sequence[Sequence[Node]]) -> list[dict[str, Any]]:
    """Packed rows of the trees in each.

    Returns:
        one dict for each packed row of n tokens: `input_ids`, `labels`, `position_ids` (the token's place in its separate row),
        `subtree_end` (token q may attend to token k exactly when `k <= q < subtree_end[k]`) and `owner` (whose token it is, an
        index into `sources`, or -1 where several conversations share it), int32 `(n,)`; `sources`, a list of `file:line`; and
        `loss_weights`, float32 `(n,)`, if the separate rows have them.
    """
    return [_row(sequences, list(_depth_first(trees))) for trees in packed]


def _depth_first(trees: Sequence[Node]) -> Iterator[Node]:
    waiting = list(reversed(trees))
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(reversed(node.children))


def _row(sequences: Sequences, nodes: list[Node]) -> dict[str, Any]:
    numbers = {owner: number for number, owner in enumerate(dict.fromkeys(node.owner for node in nodes if node.owner != SHARED))}
    facts = [(node.row, node.begin, node.end - node.begin, node.size, numbers.get(node.owner, SHARED)) for node in nodes]
    row, begin, length, size, owner = np.array(facts).T
    at = np.cumsum(length) - length
    position = np.arange(length.sum()) + np.repeat(begin - at, length)
    taken = position + np.repeat(sequences.starts[row], length)
    found = {
        "input_ids": sequences.input_ids[taken],
        "labels": sequences.labels[taken],
        "position_ids": position.astype(np.int32),
        "subtree_end": np.repeat((at + size).astype(np.int32), length),
        "owner": np.repeat(owner.astype(np.int32), length),
        "sources": [sequences.sources[owner] for owner in numbers],
    }
    return found if sequences.weights is None else found | {"loss_weights": sequences.weights[taken]}
