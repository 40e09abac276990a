"""Separate rows to packed rows: trees of them laid together, with few tokens and little empty space."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from ..recipe import RecipeError
from ..shelf import MANY, collected
from ..watch import watched
from .account import IGNORED, conserved
from .boxes import fill
from .forest import Forest, Node, plant
from .layout import Sequences, lay_out
from .splitting import split

WINDOW, WINDOW_TOKENS = MANY, 8_000_000  # separate rows that are packed together, at most: more of them, so many by themselves
STEP = 1.003  # between the row sizes that are tried where the number of rows is given


@dataclass
class Packed:
    """Packed rows, and what packing did.

    Attributes:
        rows: as `lay_out` gives them.
        row_tokens: what no row exceeds.
        tokens: laid out, all rows together.
        separate_tokens: of the separate rows together.
        least_tokens: of the trees, were none split.
        conversations: how many there are.
        room: tokens that the rows could hold.
    """

    rows: Sequence[dict[str, Any]]
    row_tokens: int
    tokens: int
    separate_tokens: int
    least_tokens: int
    conversations: int
    room: int

    @property
    def empty(self) -> float:
        """Share of the rows' room that holds no token, 0 to 1."""
        return 1 - self.tokens / self.room if self.room else 0.0


def pack(rows: Sequence[dict[str, Any]], share: bool, row_tokens: int | None = None, count: int | None = None, seed: int = 42) -> Packed:
    """Lay separate rows together; the same for the same seed. More than 20,000, or 8 million tokens, are
    packed in windows, so that memory is bounded: each by itself, with its share of the packed rows. On 60,000 conversations with tools
    that took 1.2% more tokens and 2.9% more rows of 4,096 than all at once; on 60,000 talks, which share little, nothing.

    Args:
        rows: as `build_rows` gives them.
        share: equal beginnings are stored once (exact only where no layer mixes neighbouring positions), else each row stands alone.
        row_tokens: how many tokens a packed row may hold; or
        count: how many packed rows there may be, which then are as small as possible, within three thousandths.
        seed: of the order of rows, and of the branches in a tree.

    Raises:
        RecipeError: a separate row is longer than `row_tokens`; or a supervised token was lost or doubled.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    cuts = [_between_conversations(rows, cut) for cut in windows(lengths)]
    if len(cuts) <= 2:
        return _packed(rows, share, row_tokens, count, seed)
    if row_tokens is not None and max(lengths) > row_tokens:
        long = (row for row, length in zip(rows, lengths, strict=True) if length > row_tokens)
        raise RecipeError(_too_long(Sequences.of(list(long)), row_tokens))
    found: list[Packed] = []
    kept = collected(_of_each(rows, cuts, share, row_tokens, count, seed, found), many=0)
    sums = (
        sum(getattr(window, name) for window in found) for name in ("tokens", "separate_tokens", "least_tokens", "conversations", "room")
    )
    return Packed(kept, max(window.row_tokens for window in found), *sums)


def windows(lengths: Sequence[int]) -> list[int]:
    """Where windows begin and end: as few as are small enough, each with about as much in it.

    Args:
        lengths: tokens of each row.
    """
    filled = np.cumsum([0.0, *(max(1 / WINDOW, length / WINDOW_TOKENS) for length in lengths)])
    number = max(1, int(np.ceil(filled[-1] - 1e-6)))
    inner = np.searchsorted(filled, filled[-1] * np.arange(1, number) / number - 1e-6)
    return [0, *dict.fromkeys(int(cut) for cut in inner if 0 < cut < len(lengths)), len(lengths)]


def _between_conversations(rows: Sequence[dict[str, Any]], cut: int) -> int:
    """The first place from `cut` on that is not within a conversation of several rows."""
    while 0 < cut < len(rows) and rows[cut]["source"] == rows[cut - 1]["source"]:
        cut += 1
    return cut


def _of_each(
    rows: Sequence[dict[str, Any]],
    cuts: Sequence[int],
    share: bool,
    row_tokens: int | None,
    count: int | None,
    seed: int,
    found: list[Packed],
) -> Iterator[dict[str, Any]]:
    """The packed rows of one window after the other; `found` gets what packing did in each, without the rows."""
    for start, end in watched(pairwise(cuts), "packing", len(rows), -(-len(rows) // (len(cuts) - 1)), "rows"):
        part = None if row_tokens is not None else max(1, round((count or 1) * end / len(rows)) - round((count or 1) * start / len(rows)))
        window = _packed(list(rows[start:end]), share, row_tokens, part, seed)
        yield from window.rows
        found.append(replace(window, rows=[]))


def _packed(rows: Sequence[dict[str, Any]], share: bool, row_tokens: int | None, count: int | None, seed: int) -> Packed:
    """`pack` of one window."""
    sequences = Sequences.of(rows)
    lengths = sequences.lengths
    contexts = sequences.contexts() if share else [b""] * len(lengths)
    forest = plant(contexts, lengths, sequences.owners, seed)
    longest = max(lengths, default=1)
    if row_tokens is None:
        row_tokens = _smallest(forest, longest, count or 1, seed)
    elif longest > row_tokens:
        raise RecipeError(_too_long(sequences, row_tokens))
    packed = arrange(forest, row_tokens, seed, count or 0)
    tokens = sum(tree.size for trees in packed for tree in trees)
    found = lay_out(sequences, packed)
    conserved(int((sequences.labels != IGNORED).sum()), [row["labels"] for row in found])
    return Packed(found, row_tokens, tokens, sum(lengths), forest.tokens, len(sequences.sources), len(found) * row_tokens)


def _too_long(sequences: Sequences, row_tokens: int) -> str:
    lengths = sequences.lengths
    longest, number = max(lengths), sum(length > row_tokens for length in lengths)
    source = sequences.sources[sequences.owners[lengths.index(longest)]]
    others = f" (the longest of {number:,})" if number > 1 else ""
    return (
        f"{source}: a context of {longest:,} tokens{others} does not fit into rows of {row_tokens:,}; "
        f"pass --row_tokens {longest} or more, or a smaller --max_length"
    )


def _smallest(forest: Forest, longest: int, count: int, seed: int) -> int:
    """The smallest size, within `STEP`, for which there are at most `count` rows."""
    low = max(longest, -(-forest.tokens // count))

    def size(step: int) -> int:
        return round(low * STEP**step)

    def enough(step: int) -> bool:
        return len(arrange(forest, size(step), seed, count)) <= count

    high = 1
    while not enough(high):
        high *= 2
    return size(bisect.bisect_left(range(high), True, key=enough))


def arrange(forest: Forest, row_tokens: int, seed: int, count: int = 0) -> list[list[Node]]:
    """The trees of each packed row, as `fill` lays them into rows of at most `row_tokens`; in random order by the seed.

    Args:
        count: rows that need not be saved.
    """
    generator = np.random.default_rng(seed)
    trees = split(forest, row_tokens)
    trees = [trees[i] for i in generator.permutation(len(trees))]
    packed = [[trees[i] for i in row] for row in fill([tree.size for tree in trees], row_tokens, count)]
    return [packed[i] for i in generator.permutation(len(packed))]
