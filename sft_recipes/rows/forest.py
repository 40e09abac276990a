"""Separate rows to prefix trees: equal beginnings are stored once.

A tree's node is a stretch of tokens that follows its parent's; a path from the root to a leaf is a separate row. Only the context
before the first label is shared, so that duplicates keep their weight, and the last shared token stands again at the beginning of
each branch, so that every label follows its own predecessor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

MIN_SHARED = 32  # tokens that a fork must save; attention over shorter stretches costs more than they do
SHARED = -1  # the owner of tokens that several conversations share


@dataclass(slots=True)
class Node:
    """Tokens `begin` to `end` of a separate row, and what continues them.

    Attributes:
        row: the separate row that the tokens are read from; all rows beneath have the same there.
        children: what follows the last token; none at the end of a separate row.
        size: tokens of the node and all beneath.
        owner: the conversation that all rows beneath belong to, or `SHARED`.
    """

    row: int
    begin: int
    end: int
    children: Sequence[Node] = ()
    size: int = 0
    owner: int = SHARED

    def over(self, children: Sequence[Node]) -> Node:
        """A copy with these children, of which there is at least one."""
        return Node(self.row, self.begin, self.end, children).settled()

    def settled(self) -> Node:
        """The node itself, its `size` and `owner` as its children, which have theirs, make them."""
        owners = {child.owner for child in self.children}
        self.size = self.end - self.begin + sum(child.size for child in self.children)
        self.owner = owners.pop() if len(owners) == 1 else SHARED
        return self


@dataclass
class Forest:
    """Prefix trees of separate rows.

    Attributes:
        roots: one for each tree, in the order of their first separate rows.
        forks: the nodes with children, a lower one after a higher one.
    """

    roots: list[Node]
    forks: list[Node]

    @property
    def tokens(self) -> int:
        """What the trees hold, each stretch once."""
        return sum(root.size for root in self.roots)


def plant(contexts: Sequence[bytes], lengths: Sequence[int], owners: Sequence[int], seed: int) -> Forest:
    """The trees of separate rows.

    Args:
        contexts: the tokens that each row may share, from its first on, four bytes each, the highest first: they sort as tokens do.
        lengths: how many tokens each row has.
        owners: the conversation of each row.
        seed: of the order of a fork's children, which would otherwise be that of their tokens.
    """
    order = sorted(range(len(contexts)), key=contexts.__getitem__)
    stored = np.array([_stored_once(contexts[one], contexts[other]) for one, other in pairwise(order)], dtype=np.int64)
    generator, ground, forks = np.random.default_rng(seed), Node(0, 0, 0), []
    waiting = [(ground, 0, len(order))]
    while waiting:
        parent, first, last = waiting.pop()
        cuts = np.flatnonzero(stored[first : last - 1] < parent.end + MIN_SHARED) + first + 1
        children = []
        for low, high in pairwise([first, *cuts.tolist(), last] if last else []):
            row = min(order[low:high])
            if high - low == 1:
                child = Node(row, parent.end, lengths[row], (), lengths[row] - parent.end, owners[row])
            else:
                child = Node(row, parent.end, int(stored[low : high - 1].min()))
                forks.append(child)
                waiting.append((child, low, high))
            children.append(child)
        generator.shuffle(children)
        parent.children = children
    for fork in reversed(forks):
        fork.settled()
    return Forest(sorted(ground.children, key=lambda root: root.row), forks)


def _stored_once(one: bytes, other: bytes) -> int:
    """How many tokens two contexts can store together: all in common but the last, which is laid out again in each branch."""
    length = min(len(one), len(other)) // 4
    differ = np.frombuffer(one, np.uint32, length) != np.frombuffer(other, np.uint32, length)
    at = int(differ.argmax()) if length else 0
    common = at if length and differ[at] else length
    return max(common - 1, 0)
