"""Best fit decreasing, and trees split so that they fit: at their forks, what stands above repeated in each part."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from itertools import islice

from .forest import Forest, Node

LOOKED = 8  # things looked at for one to cut, largest first


def split(forest: Forest, row_tokens: int) -> list[Node]:
    """Trees of at most `row_tokens`, with the same leaves, in the forest's order.

    From the lowest fork up: where all beneath a fork is too much for one row, it is laid into copies of the fork. What fits into a
    row whole is cut only where that lays out fewer tokens.

    Args:
        row_tokens: at least the length of every separate row.
    """
    parts: dict[int, list[Node]] = {}
    for fork in reversed(forest.forks):
        if fork.begin + fork.size > row_tokens:
            children = [part for child in fork.children for part in parts.pop(id(child), (child,))]
            parts[id(fork)] = [fork.over(some) for some in _shared_out(children, row_tokens - fork.end, fork.end)]
    return [part for root in forest.roots for part in parts.get(id(root), (root,))]


def _shared_out(trees: list[Node], room: int, above: int) -> list[list[Node]]:
    """The children of each copy of a fork whose last token is the `above`-th, with `room` beneath it."""

    def pays(filled: int, repeated: int) -> bool:
        """Whether to cut: what fills up one copy saves its share of another one, with all that stands above."""
        return (filled - repeated) * above > repeated * room

    def cut(candidates: list[int], free: int) -> tuple[int, int, int] | None:
        for i in candidates:
            tree = trees[i]
            pieces = _cut(tree, free) if pays(free, tree.end - tree.begin) else None
            if pieces and pays(pieces[0].size, pieces[0].size + pieces[1].size - tree.size):
                trees.extend(pieces)
                return i, pieces[0].size, pieces[1].size
        return None

    return [[trees[i] for i in box] for box in best_fit([tree.size for tree in trees], room, cut)]


def _cut(tree: Node, room: int) -> tuple[Node, Node] | None:
    """A part of at most `room` tokens of a larger tree, and the rest; `None` where no branch fits.

    Of each fork the part gets the branches that fit, largest first, and a part of the first that does not.
    """
    path: list[tuple[Node, list[Node], list[Node]]] = []
    fork: Node | None = tree if tree.children else None
    while fork and (room := room - (fork.end - fork.begin)) > 0:
        taken: list[Node] = []
        left: list[Node] = []
        for child in sorted(fork.children, key=lambda child: -child.size):
            (taken if child.size <= room else left).append(child)
            room -= child.size if child.size <= room else 0
        path.append((fork, taken, left))
        fork = next((child for child in left if child.children), None)
    pieces: tuple[Node, Node] | None = None
    for above, taken, left in reversed(path):
        if pieces:
            taken, left = [*taken, pieces[0]], [pieces[1], *(child for child in left if child is not fork)]
        pieces = (above.over(taken), above.over(left)) if taken else None
        fork = above
    return pieces


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
