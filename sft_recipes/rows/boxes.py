"""Things of different sizes laid into few boxes: as few as best fit decreasing finds, and nearly as few with long and short alike."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Callable, Sequence
from itertools import islice

LOOKED = 8  # things looked at for one to cut, largest first
SPARE, TRIES = 0.01, 4  # boxes that may be added, as a share of them, so that each holds long and short things; in so many steps
FILLING = 0.1  # share of all that is, the shortest things, which fill up what the others leave where it is tight


def fill(sizes: Sequence[int], room: int, count: int = 0) -> list[list[int]]:
    """As few boxes as best fit decreasing finds, or up to a hundredth more if each then holds long and short things alike.

    Best fit lays the longest together and leaves the shortest for the last boxes; an optimiser step on such a row sees one
    length only, and learns less from it.

    Args:
        sizes, room: as `best_fit` takes them.
        count: boxes that need not be saved.

    Returns:
        as `best_fit` does.
    """
    tight = best_fit(sizes, room)
    least = max(len(tight), min(count, len(sizes)))
    tries = range(least, int(least * (1 + SPARE)) + 1, max(1, int(least * SPARE) // TRIES))
    return next(filter(None, (evenly(sizes, room, boxes) for boxes in tries)), tight)


def evenly(sizes: Sequence[int], room: int, count: int) -> list[list[int]]:
    """Longest first, each into the emptiest box (longest processing time, Graham 1969, doi 10.1137/0117039); where that does not
    do, the shortest fill up what is left.

    Args:
        sizes: each at most `room`, in tokens.
        count: boxes, at most as many as things.

    Returns:
        the things in each box, as indices into `sizes`; of equal ones the first goes first. Nothing where the boxes are too few.
    """
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    return _evenly(sizes, order, room, count, 0) or _evenly(sizes, order, room, count, FILLING)


def _evenly(sizes: Sequence[int], order: Sequence[int], room: int, count: int, filling: float) -> list[list[int]]:
    """`evenly`, with a share of all that is kept for the end, when each thing goes into the fullest box that takes it."""
    boxes: list[list[int]] = [[] for _ in range(count)]
    filled, left, at = [(0, box) for box in range(count)], (1 - filling) * sum(sizes), 0
    while at < len(order) and left > 0 and filled[0][0] + sizes[order[at]] <= room:
        held, box = filled[0]
        boxes[box].append(order[at])
        heapq.heapreplace(filled, (held + sizes[order[at]], box))
        left, at = left - sizes[order[at]], at + 1
    free = sorted((room - held, box) for held, box in filled)
    for i in order[at:]:
        least = bisect.bisect_left(free, (sizes[i], -1))
        if least == count:
            return []
        space, box = free.pop(least)
        boxes[box].append(i)
        bisect.insort(free, (space - sizes[i], box))
    return [box for box in boxes if box]


def best_fit(
    sizes: Sequence[int], room: int, cut: Callable[[list[int], int], tuple[int, int, int] | None] | None = None
) -> list[list[int]]:
    """Things of these sizes laid into as few boxes as best fit decreasing finds: box by box, always the largest that still fits.

    Args:
        sizes: each at least 1 and at most `room`, in tokens.
        cut: asked for each box that nothing fits into any more, with the largest things left and the free space. It names the
            one it cut, and the sizes of a part that fits and of the rest, which then are the next two things; or `None`.

    Returns:
        the things in each box, as indices into `sizes`; of equal ones the first comes first.

    Raises:
        ValueError: a thing fits into no box.
    """
    sizes = list(sizes)
    if sizes and not 1 <= min(sizes) <= max(sizes) <= room:
        raise ValueError(f"sizes from 1 to {room} fit, these go from {min(sizes)} to {max(sizes)}")
    waiting, boxes = _Waiting(sizes), []
    while waiting.sizes:
        box: list[int] = []
        free = room
        while size := waiting.largest(free):
            box.append(waiting.take(size))
            free -= size
            while cut and free and not waiting.largest(free) and (pieces := cut(waiting.candidates(), free)):
                number, part, rest = pieces
                waiting.remove(number, sizes[number])
                box.append(len(sizes))
                sizes += [part, rest]
                waiting.put(len(sizes) - 1, rest)
                free -= part
        boxes.append(box)
    return boxes


class _Waiting:
    """Things that are in no box yet: their different sizes, ascending, and the numbers of those of each size."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.numbers: dict[int, list[int]] = {}
        for number in reversed(range(len(sizes))):
            self.numbers.setdefault(sizes[number], []).append(number)
        self.sizes = sorted(self.numbers)

    def largest(self, room: int) -> int:
        """The largest size of at most `room`; 0 for none."""
        at = bisect.bisect_right(self.sizes, room)
        return self.sizes[at - 1] if at else 0

    def candidates(self) -> list[int]:
        """A few of the largest things."""
        numbers = (number for size in reversed(self.sizes) for number in reversed(self.numbers[size]))
        return list(islice(numbers, LOOKED))

    def take(self, size: int) -> int:
        """The first of this size, which no longer waits."""
        number = self.numbers[size].pop()
        self._forget(size)
        return number

    def remove(self, number: int, size: int) -> None:
        """It no longer waits."""
        self.numbers[size].remove(number)
        self._forget(size)

    def put(self, number: int, size: int) -> None:
        """It waits, too."""
        if size not in self.numbers:
            self.numbers[size] = []
            bisect.insort(self.sizes, size)
        self.numbers[size].append(number)

    def _forget(self, size: int) -> None:
        if not self.numbers[size]:
            del self.numbers[size], self.sizes[bisect.bisect_left(self.sizes, size)]
