"""Attention over a row's pieces with torch's flash attention for the CPU: every visible pair once, no other pair at all.

Each piece gives the attention over its keys alone and the logarithm of its softmax's sum. Parts are merged as in online softmax
(arXiv 1805.02867); backwards, each piece gets the merged output and the merged logarithm, from which flash attention's own
backward (arXiv 2205.14135, section B.4) takes exactly that piece's part of the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .layout import Seen
from .pieces import Piece

forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel takes these: on the CPU, with heads of one width."""
    return query.device.type == "cpu" and query.shape[-1] == key.shape[-1] == value.shape[-1]


def attention(query: Tensor, key: Tensor, value: Tensor, seen: Seen, scale: float | None, sinks: Tensor | None = None) -> Tensor:
    """Softmax attention over a row's visible pairs.

    Args:
        query: `(1, heads, length, width)`.
        key, value: `(1, key heads, length, width)`; the number of heads is a multiple of theirs.
        seen: the visible pairs.
        scale: of the scores; `None` for `width ** -0.5`.
        sinks: a logit for each head that takes part in the softmax and has no value (gpt-oss), `(heads,)`.

    Returns:
        `(1, heads, length, width)`.
    """
    result: Tensor = _Ragged.apply(query, key, value, sinks, seen, scale)
    return result


class _Ragged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, sinks: Any, seen: Any, scale: Any) -> Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)  # parts are summed in
        output = torch.empty(query.transpose(1, 2).shape, dtype=wide).transpose(1, 2)
        logsum = torch.empty(query.shape[:3], dtype=wide)
        for piece in seen.pieces:
            at, *taken = _cut(piece, query, key, value)
            part, its = forward(*taken, 0.0, len(piece.runs) == 1, attn_mask=seen.added(piece, query.dtype), scale=scale)
            output[at], logsum[at] = (part, its) if piece.own else _merged(output[at], logsum[at], part, its)
        if sinks is not None:
            output, logsum = _merged(output, logsum, torch.zeros(()), sinks.to(wide)[:, None])
        output = output.to(query.dtype)
        ctx.save_for_backward(query, key, value, sinks, output, logsum)
        ctx.given = seen, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        query, key, value, sinks, output, logsum = ctx.saved_tensors
        seen, scale = ctx.given
        found = [torch.zeros_like(x, dtype=logsum.dtype) for x in (query, key, value)]
        for piece in seen.pieces:
            at, *taken = _cut(piece, query, key, value)
            merged = gradient[at], *taken, output[at], logsum[at]
            parts = backward(*merged, 0.0, len(piece.runs) == 1, attn_mask=seen.added(piece, query.dtype), scale=scale)
            for total, part in zip(_cut(piece, *found)[1:], parts, strict=True):
                total += part
        of_sinks = None
        if sinks is not None:
            share = torch.exp(sinks.to(logsum.dtype)[:, None] - logsum)
            of_sinks = -(share * (gradient * output).to(logsum.dtype).sum(-1)).sum((0, 2)).to(sinks.dtype)
        return *(total.to(query.dtype) for total in found), of_sinks, None, None


def _cut(piece: Piece, query: Tensor, key: Tensor, value: Tensor) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Where the piece's queries are; its part of each of the three."""
    at = (slice(None), slice(None), slice(piece.first_query, piece.behind_query))
    keys = (slice(None), slice(None), slice(piece.first_key, piece.behind_key))
    return at, query[at], key[keys], value[keys]


def _merged(output: Tensor, logsum: Tensor, part: Tensor, its: Tensor) -> tuple[Tensor, Tensor]:
    """Two attentions over different keys as one over all of them."""
    both = torch.logaddexp(logsum, its)
    return output * (logsum - both).exp()[..., None] + part * (its - both).exp()[..., None], both
