"""Which token of a packed row may attend to which.

A row is a forest laid out depth-first: token `q` attends to token `k` exactly when `k <= q < subtree_end[k]`, and in a layer with
a sliding window when `position[q] - position[k]` is inside it. Plain packing is the case in which every token's subtree ends
where its document ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from .blocks import block_mask, first_seen
from .pieces import Piece, pieces, segments


class Layout:
    """The forest of one row.

    Args:
        subtree_end: whole numbers, shape `(1, length)`: the index behind the last descendant of each token.
        position_ids: likewise: the depth of each token, which is its position in its own conversation.
    """

    def __init__(self, subtree_end: Tensor, position_ids: Tensor):
        self.end, self.position = subtree_end[0], position_ids[0]
        self._seen: dict[int | None, Seen] = {}

    def __len__(self) -> int:
        return len(self.end)

    def seen(self, window: int | None) -> Seen:
        """What a layer sees, whose sliding window is so many tokens; `None` for full attention. Made once, for all such layers."""
        if window not in self._seen:
            self._seen[window] = Seen(self, window)
        return self._seen[window]

    @cached_property
    def segments(self) -> list[tuple[int, int, int]]:
        """Runs of tokens without a fork: first token, the one behind the last, and the one behind the last descendant."""
        return segments(self.end.tolist())


def path_lengths(inputs: Mapping[str, Any]) -> Tensor | None:
    """Tokens of the longest path through each token, `(1, length)`: of a token in one conversation only, that conversation's.

    Args:
        inputs: a batch; `subtree_end` and `position_ids` of shape `(1, length)`. Without them its rows are separate: `None`.
    """
    if "subtree_end" not in inputs:
        return None
    return _deepest(inputs["position_ids"][0], inputs["subtree_end"][0].long())[None] + 1


def _deepest(position: Tensor, end: Tensor) -> Tensor:
    """The largest position among each token and all beneath it, `(length,)`, from two stretches that cover them, each a power of two long.

    Nothing is read back from the device, and there are as many operations as such powers.
    """
    longest = end - torch.arange(len(position), device=position.device)
    found, over, width = position, position, 1  # `over`: the largest of `width` positions from each token on
    while width < len(position):
        over = torch.maximum(over, torch.cat([over[width:], over[-1:].expand(width)]))
        width *= 2
        found = torch.where(longest >= width, torch.maximum(over, over[(end - width).clamp(min=0)]), found)
    return found


class Seen:
    """What the tokens of a layout see in a layer with some window; goes through transformers in the place of a mask."""

    def __init__(self, layout: Layout, window: int | None):
        self.layout, self.window = layout, window
        self._added: dict[Any, Tensor] = {}

    @cached_property
    def pieces(self) -> list[Piece]:
        """The visible pairs as rectangles, none twice; those with each token's own run first."""
        return pieces(self.layout.segments, self.layout.position.tolist(), self.window)

    def added(self, piece: Piece, dtype: torch.dtype) -> Tensor | None:
        """What is added to a piece's scores, `(queries, keys)`: 0 where seen, else minus infinity; `None` where no mask is needed."""
        if piece.offset is None and len(piece.runs) < 2:
            return None
        queries, keys = piece.behind_query - piece.first_query, piece.behind_key - piece.first_key
        alike = queries, keys, piece.offset, piece.runs, dtype
        if alike not in self._added:
            if piece.offset is None:
                inside = torch.block_diag(*(torch.ones(length, length) for length in piece.runs)).tril().bool()
            else:
                inside = torch.ones(queries, keys, dtype=torch.bool).tril(piece.offset).triu(piece.offset - (self.window or 0) + 1)
            self._added[alike] = torch.zeros(queries, keys, dtype=dtype).masked_fill(~inside, -torch.inf)
        return self._added[alike]

    @cached_property
    def first(self) -> Tensor:
        """The earliest token that each token may see, `(length,)`; see `blocks.first_seen`."""
        return first_seen(self.layout.position, self.window)

    @cached_property
    def blocks(self) -> BlockMask:
        """The visible pairs as FlexAttention takes them."""
        return block_mask(self.layout.end, self.first, self.allows)

    @cached_property
    def dense(self) -> Tensor:
        """Bools `(1, 1, length, length)`, queries by keys: the slow obvious way, and what kernels without a better one get."""
        each = torch.arange(len(self.layout), device=self.layout.end.device)
        return self.allows(0, 0, each[:, None], each)[None, None]

    @property
    def allows(self) -> Callable[[Any, Any, Tensor, Tensor], Tensor]:
        """Whether query `q` sees key `k`, as a mask function of FlexAttention; one for all windows, so that it is compiled once."""
        end, first = self.layout.end, self.first

        def allows(batch: Any, head: Any, q: Tensor, k: Tensor) -> Tensor:
            return (first[q] <= k) & (k <= q) & (q < end[k])

        return allows
