"""NEFTune as its paper has it (arXiv 2310.05914): noise on the input embedding while training (promise 6).

Uniform in +-alpha / sqrt(L * d): L the tokens of that document, d the width of the embedding, in the units of its table.
transformers divides by the length of the padded or packed row instead, and adds the noise after the layer has scaled the
table, as Gemma's does by sqrt(d). Here the noise is scaled with the embedding, and is only there within one forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.func import functional_call
from transformers.integrations.neftune import neftune_post_forward_hook

from ..recipe import RecipeError


class Neftune:
    """The noise of one training run.

    Args:
        model: may be wrapped (PEFT, DDP); its `get_input_embeddings()` gets the noise, and no other table.
        alpha: the paper's, 5 to 15; `None` or 0 for no noise.

    Raises:
        RecipeError: the input embedding is not its table times a number.
    """

    def __init__(self, model: nn.Module, alpha: float | None):
        self.model, self.alpha = model, alpha or 0.0
        self.scale = embedding_scale(_input_embedding(model)) if self.alpha else 1.0

    @contextmanager
    def during(self, inputs: Mapping[str, Any], lengths: Tensor | None = None) -> Iterator[None]:
        """One forward pass of `inputs` with noise; none in evaluation mode, and no second one within another such block.

        Drawn from torch's global generator, which the trainer seeds for each micro-batch: the noise does not depend on what came before.

        Args:
            inputs: a batch, as `document_lengths` reads it.
            lengths: instead of those, shape `(batch, length)`; 0 where there is to be no noise.

        Raises:
            RecipeError: transformers' NEFTune is on too, or the model did not read these tokens through its embedding.
        """
        embedding = _input_embedding(self.model)
        if not self.alpha or not embedding.training or _is_noisy(embedding):
            yield
            return
        if neftune_post_forward_hook in embedding._forward_hooks.values():
            raise RecipeError("transformers' own NEFTune is on as well; the trainer's arguments must leave `neftune_noise_alpha` out")
        noise = _Noise(self.alpha * self.scale, document_lengths(inputs) if lengths is None else lengths)
        handle = embedding.register_forward_hook(noise)
        try:
            yield
        finally:
            handle.remove()
        if not noise.added:
            raise RecipeError(f"no NEFTune noise was added: the model did not embed tokens of shape {tuple(noise.amplitude.shape)}")


class _Noise:
    """A forward hook that adds the noise of one batch. A class, so that it is known when met again."""

    def __init__(self, amplitude: float, lengths: Tensor):
        self.amplitude = torch.where(lengths > 0, amplitude / lengths.clamp(min=1).sqrt(), 0.0)
        self.added = False

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if output.shape[:-1] != self.amplitude.shape:
            return output  # a placeholder token that a multimodal model looks up, not the batch
        self.added = True
        # In bfloat16 the draw would have 8 bits, and be rounded once more than the sum is.
        wide = torch.promote_types(output.dtype, torch.float32)
        bound = self.amplitude.to(output.device, wide)[..., None] / math.sqrt(output.shape[-1])
        return (output + (2 * torch.rand_like(output, dtype=wide) - 1) * bound).to(output.dtype)


def document_lengths(inputs: Mapping[str, Any]) -> Tensor:
    """Tokens of the document that each position belongs to; 0 at padding.

    Args:
        inputs: a batch with `input_ids` of shape `(batch, length)`. Documents begin where its `position_ids` are 0; without
            these each row is one. Where `attention_mask` is 0 there is padding; without it there is none, but that TRL
            pads packed rows with documents of one token, in which there is nothing to learn either.

    Returns:
        whole numbers, shape `(batch, length)`.

    Raises:
        RecipeError: a mask that is not two-dimensional, which leaves open what a document is.
    """
    ids, mask, positions = (inputs.get(key) for key in ("input_ids", "attention_mask", "position_ids"))
    assert isinstance(ids, Tensor)
    if mask is not None and getattr(mask, "ndim", 0) != 2:
        raise RecipeError("NEFTune cannot tell the documents of a batch from its attention mask; give `lengths`")
    there = torch.ones_like(ids) if mask is None else (mask != 0).to(ids.dtype)
    if positions is None:
        return there.sum(1, keepdim=True) * there
    # Of Qwen-VL's three positions the first is that of the text.
    begins = (positions[0] if positions.ndim == 3 else positions) == 0
    document = begins.expand_as(ids).cumsum(1)
    sizes = torch.zeros(len(ids), ids.shape[1] + 1, dtype=ids.dtype, device=ids.device).scatter_add(1, document, there)
    lengths = sizes.gather(1, document) * there
    return lengths * (lengths > 1)


class _Bare(nn.Module):
    """A layer without its hooks, which may be others' noise."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, ids: Tensor) -> Tensor:
        return self.layer.forward(ids)


def embedding_scale(embedding: nn.Module) -> float:
    """What the layer multiplies its table by: 1 for most, sqrt(d) for Gemma; asked by showing it a table of ours.

    Its own table is not read: it may be sharded, and rows in it may be 0.

    Raises:
        RecipeError: the layer does something other than multiply.
    """
    layer = _unwrapped(embedding)
    try:
        shown, got = _shown(layer)
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise RecipeError(f"NEFTune cannot read the input embedding, {type(layer).__name__}: {error}") from error
    scale = (got @ shown / (shown @ shown)).item()
    if not torch.allclose(got, scale * shown, rtol=0, atol=0.01 * abs(scale)):
        raise RecipeError(f"NEFTune needs an input embedding that is a table times a number; {type(layer).__name__} is not")
    return scale


def _shown(layer: Any) -> tuple[Tensor, Tensor]:
    """The row of a made-up table, powers of 2 that every type holds exactly, and what the layer makes of it."""
    weight = layer.weight
    row = (2.0 ** (torch.arange(weight.shape[-1], device=weight.device) % 4)).to(weight.dtype)
    ids = torch.zeros(1, 1, dtype=torch.long, device=weight.device)
    with torch.no_grad():
        got = functional_call(_Bare(layer), {"layer.weight": row.expand(weight.shape)}, ids)
    return row.float(), got.flatten().float()


def _input_embedding(model: nn.Module) -> Any:
    """What the model calls to embed its tokens: a PEFT layer, where there is one around the table."""
    return extract_model_from_parallel(model).get_input_embeddings()


def _unwrapped(embedding: Any) -> Any:
    """The layer that holds the table, within PEFT's wrappers."""
    while inner := getattr(embedding, "original_module", None) or getattr(embedding, "base_layer", None):
        embedding = inner
    return embedding


def _is_noisy(embedding: nn.Module) -> bool:
    return any(isinstance(hook, _Noise) for hook in embedding._forward_hooks.values())
