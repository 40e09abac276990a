"""Packed rows behind transformers' attention, and the choice of the kernel.

Under a name of ours transformers finds an attention function and a mask function. Where a layout is given, the mask is what a
layer sees of it, and the attention takes that; otherwise both are those that the model had before, so that generation and
evaluation are left as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from . import ragged
from .layout import Layout, Seen

PREFIX = "prefix_tree_or_"
FLEXIBLE = {"cuda"}  # kinds of device on which FlexAttention computes packed rows
_current: ContextVar[Layout | None] = ContextVar("layout", default=None)


def install(model: Any) -> None:
    """Let a model take packed rows within `laid_out`; whatever else it is shown goes through the attention it had.

    Args:
        model: may be wrapped by PEFT; of a multimodal one only the part that reads text is changed.
    """
    decoder = model.get_decoder()
    own = decoder.config._attn_implementation
    if own.startswith(PREFIX):
        return
    AttentionInterface.register(PREFIX + own, partial(_attend, own))
    AttentionMaskInterface.register(PREFIX + own, partial(_mask, own))
    decoder.set_attn_implementation(PREFIX + own)


@contextmanager
def laid_out(inputs: Mapping[str, Any]) -> Iterator[None]:
    """Within the block a model with `install` reads `inputs` as the forest that its `subtree_end` says, if it has one.

    The layout reaches each layer as an argument, so a layer that is computed again in the backward pass has it too.

    Args:
        inputs: a batch; `subtree_end` and `position_ids` of shape `(1, length)`.
    """
    token = _current.set(Layout(inputs["subtree_end"], inputs["position_ids"]) if "subtree_end" in inputs else None)
    try:
        yield
    finally:
        _current.reset(token)


def _mask(own: str, *args: Any, **kwargs: Any) -> Any:
    """What a layer sees, made once a forward pass for each kind of layer; `local_size` is the window of the sliding ones."""
    layout = _current.get()
    if layout is None or kwargs.get("q_length") != len(layout):
        return ALL_MASK_ATTENTION_FUNCTIONS[own](*args, **kwargs)
    seen = layout.seen(kwargs.get("local_size"))
    return seen.blocks if layout.end.device.type in FLEXIBLE else seen


def _attend(own: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    """The attention of one layer: FlexAttention on CUDA, `ragged` on the CPU, elsewhere the model's own with a dense mask."""
    if isinstance(attention_mask, (torch.nn.attention.flex_attention.BlockMask, Seen)):
        # under autocast a norm leaves queries and keys in float32 where values are not; neither kernel is one that autocast knows
        query, key = query.to(value.dtype), key.to(value.dtype)
    if isinstance(attention_mask, torch.nn.attention.flex_attention.BlockMask):
        return flex_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if isinstance(attention_mask, Seen):
        if ragged.fits(query, key, value) and kwargs.get("softcap") is None:
            given = attention_mask, kwargs.get("scaling"), kwargs.get("s_aux")
            return ragged.attention(query, key, value, *given).transpose(1, 2), None
        attention_mask = _added(attention_mask.dense, query.dtype)
    return _own(own, module)(module, query, key, value, attention_mask, **kwargs)


def _own(own: str, module: nn.Module) -> Any:
    """An attention function by the name transformers has for it; `eager` is a function of the model's own file."""
    return sys.modules[type(module).__module__].eager_attention_forward if own == "eager" else ALL_ATTENTION_FUNCTIONS[own]


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added to the scores, which every implementation takes."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
