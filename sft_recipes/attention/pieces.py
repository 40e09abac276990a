"""The visible pairs of a row as rectangles, so that a kernel computes nothing that a mask would throw away.

The descendants of a run of tokens lie behind it without a gap, and all of them see all of it: one rectangle for each run, and
the triangle of the run with itself. Short runs share a square. A window that bites cuts these into smaller ones, some with a
band inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

SMALL = 64  # tokens below which a call of its own costs more than the pairs it saves
LARGE = 512  # queries of a rectangle above which what a call gives back no longer fits into the processor's caches

Segment = tuple[int, int, int]  # first token, the one behind the last, the one behind the last descendant


class Piece(NamedTuple):
    """Queries that see keys, as half-open ranges of indices.

    Attributes:
        own: the queries are among the keys, so this is the first piece with them, and every query has exactly one such.
        runs: lengths of the runs that the queries consist of, one after the other, where keys and queries are the same and each
            token sees those of its own run up to itself.
        offset: position of the first query less that of the first key, where a band has to be kept: query `i` and key `j` of
            the piece see each other when `0 <= offset + i - j < window`. `None` where every query sees every key.
    """

    first_query: int
    behind_query: int
    first_key: int
    behind_key: int
    own: bool
    runs: tuple[int, ...] = ()
    offset: int | None = None


def segments(subtree_end: Sequence[int]) -> list[Segment]:
    """Runs of tokens without a fork.

    Args:
        subtree_end: for each token the index behind its last descendant.
    """
    starts = [i for i, end in enumerate(subtree_end) if not i or end != subtree_end[i - 1]]
    return [(start, stop, subtree_end[start]) for start, stop in zip(starts, [*starts[1:], len(subtree_end)], strict=True)]


def pieces(found: Sequence[Segment], position: Sequence[int], window: int | None = None) -> list[Piece]:
    """Rectangles that together hold every visible pair once.

    Args:
        found: from `segments`.
        position: depth of each token.
        window: of the layer, in tokens; `None` for full attention.
    """
    result = [*_own(found, window)]
    for number, (start, stop, end) in enumerate(found):
        if end == stop:
            continue
        if window is None or max(position[start:end]) - position[start] < window:
            result += [Piece(first, min(first + LARGE, end), start, stop, False) for first in range(stop, end, LARGE)]
        else:
            result += _within(found[number + 1 :], position, (start, stop, end), window)
    return result


def _own(found: Sequence[Segment], window: int | None) -> Iterator[Piece]:
    """Each run with itself: short ones together, a long one as a triangle, or as a band where it is longer than the window."""
    short: list[int] = []
    for start, stop, _ in found:
        length, bitten = stop - start, window is not None and stop - start > window
        if short and (bitten or length >= SMALL or sum(short) + length > 2 * SMALL):
            yield _square(start, short)
            short = []
        if bitten:
            yield from _band(start, stop, window or 0)
        elif length >= SMALL:
            yield _square(stop, [length])
        else:
            short.append(length)
    if short:
        yield _square(found[-1][1], short)


def _square(behind: int, runs: list[int]) -> Piece:
    """Runs that end at an index, each with itself."""
    first = behind - sum(runs)
    return Piece(first, behind, first, behind, True, tuple(runs))


def _band(start: int, stop: int, window: int) -> Iterator[Piece]:
    """A run with the part of itself that is inside the window."""
    step = max(SMALL, window // 4)
    for first in range(start, stop, step):
        behind, key = min(first + step, stop), max(start, first - window + 1)
        yield Piece(first, behind, key, behind, True, offset=first - key)


def _within(later: Iterable[Segment], position: Sequence[int], keys: Segment, window: int) -> Iterator[Piece]:
    """The end of a run with the beginning of each run below it, as far as the window reaches."""
    start, stop, end = keys
    for first, behind, _ in later:
        if first >= end:
            return
        reach = window - (position[first] - position[stop - 1])  # how many keys the first query sees, and queries the last key
        if reach <= 0:
            continue
        key, query = max(start, stop - reach), min(behind, first + reach)
        offset = position[first] - position[key]
        inside = offset + query - first <= window  # the farthest pair, last query and first key, still sees each other
        yield Piece(first, query, key, stop, False, offset=None if inside else offset)
