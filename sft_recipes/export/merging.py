"""An adapter and its base as one model, in memory: merged layer by layer in float32, each cast once.

PEFT does the merging; what is left to us is which weights it merges into, in which precision, and what becomes of an
embedding and a head that share theirs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.bitsandbytes import dequantize_bnb_weight

from ..recipe import Recipe, RecipeError
from ..weights import load_base, refuse_pickled

CPU = torch.device("cpu")


@dataclass
class Merged:
    """A whole model on the CPU, in the recipe's `dtype`.

    Attributes:
        model: what is to be saved.
        moved: for each layer that the adapter changed, the norm of the change over the norm of the weights it changed.
    """

    model: PreTrainedModel
    moved: dict[str, float]


def merged(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, adapter: Path, base: str) -> Merged:
    """The adapter merged into its base.

    At its highest the memory is that of the model in its `dtype`, and one layer of it in float32 twice.

    Args:
        recipe: names the base, its quantisation and dtype.
        tokenizer: from `load_tokenizer`.
        adapter: folder with the trained adapter.
        base: `trained`: the weights it was trained on, for QLoRA those that the 4 bits stand for (another model than the
            checkpoint: KL 1.1e-2 against 9e-6, measured on a small Gemma 3); `original`: the checkpoint.

    Raises:
        RecipeError: PEFT cannot merge it, or a merged weight is not finite.
    """
    model = _whole_base(recipe, tokenizer, base)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    tied = is_tied(model)
    refuse_pickled(adapter)
    adapted: Any = PeftModel.from_pretrained(model, str(adapter))
    _own_tables(model)
    moved = {}
    try:
        for name, layer in tqdm(_layers(model), desc="merging", disable=None, delay=2, leave=False):
            moved[name] = _merge_in_float32(layer)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All adapters are already merged")
            model = adapted.merge_and_unload(safe_merge=True)  # what is left: whole modules and single rows, which are copied
    except (ValueError, RuntimeError) as error:
        raise RecipeError(f"{adapter}: {error}") from error
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtypes.get(name, getattr(torch, recipe.dtype)))
    if tied:
        _tie_again(model)
    return Merged(model.requires_grad_(False), moved)


def _whole_base(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, base: str) -> PreTrainedModel:
    """The base that is merged into, unquantised, on the CPU."""
    if base == "original" or recipe.quantization is None:
        return load_base(replace(recipe, quantization=None), tokenizer, on=CPU)
    return _dequantized(load_base(recipe, tokenizer))


def _dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """Each quantised layer as the plain one that it computes with, one at a time and onto the CPU.

    transformers' own `dequantize` leaves them on the device, which may have no room for a whole model. The weights that the bits
    stand for have the dtype in which the base was loaded, so nothing is rounded here.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, (Linear4bit, Linear8bitLt)):
            with torch.device("meta"):
                plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            plain.weight = nn.Parameter(dequantize_bnb_weight(module.weight, getattr(module, "state", None)).to(CPU), False)
            plain.bias = module.bias
            model.set_submodule(name, plain)
    return model.hf_quantizer.remove_quantization_config(model) or model.to(CPU)


def tables(model: PreTrainedModel) -> list[Any]:
    """The modules with a row for each token, the input embedding and the head where there is one, without their adapters."""
    both = (model.get_input_embeddings(), model.get_output_embeddings())
    return [module.get_base_layer() if isinstance(module, BaseTunerLayer) else module for module in both if module is not None]


def is_tied(model: PreTrainedModel) -> bool:
    """Whether embedding and head are the same weights."""
    found = [module.weight for module in tables(model)]
    if len(found) < 2 or found[0] is found[1]:
        return len(found) == 2
    in_parts = isinstance(found[0], DTensor) or hasattr(found[0], "ds_shape")  # FSDP2, ZeRO-3: what lies here says nothing
    return not in_parts and bool(found[0].data_ptr() == found[1].data_ptr())


def shape(table: Any) -> tuple[int, ...]:
    """Of a table's weights, also where they lie in parts: ZeRO-3 leaves their shape beside them."""
    return tuple(getattr(table.weight, "ds_shape", table.weight.shape))


def _own_tables(model: PreTrainedModel) -> None:
    """Give embedding and head each its own weights, where an adapter changes one of them.

    PEFT merges into the weights they share, and so changes both, or the same twice.
    """
    adapted = any(isinstance(m, BaseTunerLayer) for m in (model.get_input_embeddings(), model.get_output_embeddings()))
    if adapted and is_tied(model):
        head = tables(model)[1]
        head.weight = nn.Parameter(head.weight.detach().clone(), False)


def _tie_again(model: PreTrainedModel) -> None:
    """One set of weights again for embedding and head where they came out equal; otherwise a model that says it has two."""
    embedding, head = tables(model)
    tied = torch.equal(embedding.weight, head.weight)
    if tied:
        head.weight = embedding.weight
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = tied


def _layers(model: nn.Module) -> list[tuple[str, Any]]:
    """The adapted layers by name, the outermost where they are nested (several parameters of one module)."""
    found: list[tuple[str, Any]] = []
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if inside and name.startswith(inside):
            continue
        if isinstance(module, BaseTunerLayer):
            found.append((name, module))
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            inside = (*inside, f"{name}.")
    return found


@torch.no_grad()
def _merge_in_float32(layer: Any) -> float:
    """Merge one layer and cast it back; the size of the change, relative to the weights."""
    parameters = list(layer.get_base_layer().parameters())
    before = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    layer.merge(safe_merge=True)
    change = sum((p.data - old).square().sum().item() for p, old in zip(parameters, before, strict=True))
    size = sum(old.float().square().sum().item() for old in before)
    for parameter, old in zip(parameters, before, strict=True):
        parameter.data = parameter.data.to(old.dtype)
    return (change / max(size, 1e-30)) ** 0.5


@contextmanager
def cast(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[Merged]:
    """A fully fine-tuned model in the `dtype` it is deployed in, on the CPU, for as long as it is saved."""
    kept = [(parameter, parameter.data) for parameter in model.parameters()]
    try:
        for parameter, data in kept:
            parameter.data = data.to(CPU, dtype)
        yield Merged(model, {})
    finally:
        for parameter, data in kept:
            parameter.data = data
