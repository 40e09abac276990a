"""What autograd holds during a pass of a decoder, followed tensor by tensor without any memory: on fake tensors.

A fake tensor has a shape, a dtype and a lifetime, and no values. The model's own code runs on it, with its casts, its adapter and its
gradient checkpointing, so that what is held is read off and not assumed. Attention is a stand-in that keeps what flash attention keeps
(arXiv 2205.14135: queries, keys, values, output and a logarithm a query), as the kernels of `attention.interface` and of torch do.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv

NAMES = {True: "sft_recipes_traced_packed", False: "sft_recipes_traced_separate"}


MANY = 30_000  # operations of one pass, beyond which a layer goes token by token and would take minutes


class Held(NamedTuple):
    """Bytes beside parameters and their gradients: between the two ways, and at most on either."""

    kept: int
    forward: int
    backward: int


def held(decoder: Any, length: int, compute: str, frozen: str, checkpointing: bool, packed: bool) -> Held:
    """Follow one pass over a row.

    Args:
        decoder: on the meta device, with its adapter; its parameters are replaced by fake ones.
        length: tokens.
        compute: `stored`: what is trained in float32, the rest in `frozen`; `mixed`: the same under autocast to bfloat16; or the dtype of
            everything.
        frozen: dtype of what is not trained.
        checkpointing: gradient checkpointing of each layer, not reentrant, as here.
        packed: rows without padding, whose attention takes keys and values as they are; else they stand there once for each head.

    Raises:
        Exception: whatever the model's code raises where it asks a tensor for its values; or it has too many operations.
    """
    decoder.train()
    with FakeTensorMode(), _checkpointed(decoder, checkpointing), _attended(decoder, packed):
        known = _given(decoder, compute, frozen)
        ids = torch.zeros((1, length), dtype=torch.long)
        cast: Any = torch.autocast("cpu", torch.bfloat16) if compute == "mixed" else nullcontext()
        with Live(known) as live:
            with cast:
                output = decoder(input_ids=ids, attention_mask=None, use_cache=False)[0]
            kept, forward = live.bytes, live.peak
            live.peak = 0
            if output.requires_grad:
                output.backward(torch.empty_like(output))
            return Held(kept, forward, live.peak)


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that are made within it and still there, but for the embedding's gradient.

    Args:
        known: tensors whose storages are not counted.
    """

    def __init__(self, known: list[Tensor]):
        super().__init__()
        self.bytes = self.peak = self.operations = 0
        self._known: dict[int, Any] = {tensor.untyped_storage()._cdata: tensor for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        if self.operations > MANY:
            raise RuntimeError("it is computed token by token")
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and function is not torch.ops.aten.embedding_dense_backward.default:  # a gradient, the last
                self._count(tensor.untyped_storage())
        return found

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            self._known[key] = weakref.ref(storage, lambda _: self._gone(key, size))

    def _gone(self, key: int, size: int) -> None:
        self.bytes -= size
        del self._known[key]


def _given(decoder: nn.Module, compute: str, frozen: str) -> list[Tensor]:
    """Fake parameters and buffers in the place of those on the meta device; a gradient is gone as soon as it is there."""
    known: list[Tensor] = []
    for module in decoder.modules():
        for name, old in module._parameters.items():
            if old is not None:
                dtype = _dtype(old, compute, frozen)
                new = nn.Parameter(torch.empty(old.shape, dtype=dtype), requires_grad=old.requires_grad)
                if new.requires_grad:
                    new.register_post_accumulate_grad_hook(_forget)
                module._parameters[name] = new
                known.append(new)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
                known.append(module._buffers[name])  # type: ignore[arg-type]
    return known


def _dtype(parameter: Tensor, compute: str, frozen: str) -> torch.dtype:
    if compute in ("mixed", "stored"):
        compute = "float32" if parameter.requires_grad else frozen
    found: torch.dtype = getattr(torch, compute)
    return found


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


@contextmanager
def _checkpointed(decoder: Any, wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    decoder.activation_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        decoder.gradient_checkpointing_disable()


@contextmanager
def _attended(decoder: Any, packed: bool) -> Iterator[None]:
    """Within the block the decoder's attention is the stand-in; one whose attention cannot be exchanged keeps its own."""
    own = decoder.config._attn_implementation
    if not (decoder._supports_attention_backend and decoder._can_set_attn_implementation()):
        yield
        return
    AttentionInterface.register(NAMES[packed], _packed if packed else _separate)
    AttentionMaskInterface.register(NAMES[packed], _no_mask if packed else _dense_mask)
    decoder.set_attn_implementation(NAMES[packed])
    try:
        yield
    finally:
        decoder.set_attn_implementation(own)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


def _dense_mask(batch_size: int, q_length: int, kv_length: int, *args: Any, **kwargs: Any) -> Tensor:
    return torch.empty((batch_size, 1, q_length, kv_length), dtype=torch.bool)


def _packed(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    found: Any = _Flash.apply(query.to(value.dtype), key.to(value.dtype), value)
    return found.transpose(1, 2), None


def _separate(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    groups = query.shape[1] // key.shape[1]
    key, value = (repeat_kv(x, groups) for x in (key, value))
    return _packed(module, query, key, value)


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any) -> Tensor:
        batch, heads, length, _ = query.shape
        output = query.new_empty((batch, length, heads, value.shape[-1])).transpose(1, 2)
        logarithm = query.new_empty((batch, heads, length), dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, logarithm)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
