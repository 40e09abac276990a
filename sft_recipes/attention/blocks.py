"""What the tokens of a row see in blocks of 128 by 128, for FlexAttention: made from bounds of each block, never from all pairs.

torch's `create_block_mask` asks its mask function for every pair, 67 million of a row of 8,192 tokens, or is compiled anew for new lengths.
A forest needs neither: of the tokens in a block, four numbers decide.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad

SIDE = 128  # tokens; FlexAttention's own


def first_seen(position: Tensor, window: int | None) -> Tensor:
    """The earliest of the tokens above each token in its tree, itself among them, that is inside its window.

    In a row laid out depth-first the token above another at some depth is the last one before it at that depth.

    Args:
        position: depth of each token, whole numbers `(length,)`.
        window: in tokens; `None` for full attention.

    Returns:
        indices, int32 `(length,)`; 0 for full attention, where `subtree_end` says all.
    """
    length = len(position)
    if window is None:
        return torch.zeros(length, dtype=torch.int32, device=position.device)
    index = torch.arange(length, device=position.device)
    by_depth = (position.long() * length + index).sort().values
    wanted = (position.long() - window + 1).clamp(min=0) * length + index
    return (by_depth[torch.searchsorted(by_depth, wanted, right=True) - 1] % length).int()


def block_mask(end: Tensor, first: Tensor, allows: Any) -> BlockMask:
    """The blocks in which some pair is visible, and those in which all are; nothing is read back from the device.

    A block without a visible pair may be among the first kind, where `allows` then leaves nothing of it.

    Args:
        end: the index behind the last descendant of each token, `(length,)`.
        first: from `first_seen`.
        allows: the mask function of a pair, by these two.
    """
    length, count = len(end), -(-len(end) // SIDE)
    rest = count * SIDE - length
    ends, firsts = pad(end, (0, rest)).view(count, SIDE), pad(first, (0, rest), value=length).view(count, SIDE)
    begins = torch.arange(0, count * SIDE, SIDE, device=end.device)
    query, key = begins[:, None], begins
    above = key < query
    some = (above & (ends.amax(1) > query) & (firsts.amin(1)[:, None] < key + SIDE)) | (key == query)
    every = above & (ends.amin(1) >= query + SIDE) & (firsts.amax(1)[:, None] <= key)
    return BlockMask.from_kv_blocks(
        *_listed(some & ~every),
        *_listed(every),
        BLOCK_SIZE=SIDE,
        mask_mod=allows,
        seq_lengths=(length, length),
    )


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which: theirs first. int32 `(1, 1, blocks)` and `(1, 1, blocks, blocks)`."""
    order = chosen.int().argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32)[None, None], order.int()[None, None]
