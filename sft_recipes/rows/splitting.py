"""Trees split so that they fit into rows: at their forks, what stands above repeated in each part."""

from __future__ import annotations

from .boxes import best_fit, evenly
from .forest import Forest, Node


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

    sizes = [tree.size for tree in trees]
    boxes = best_fit(sizes, room, cut)
    if len(trees) == len(sizes):  # none was cut
        boxes = evenly(sizes, room, len(boxes)) or boxes
    return [[trees[i] for i in box] for box in boxes]


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
