"""A model without weights to the numbers that `memory` needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..recipe import Recipe
from ..weights.skeleton import adapted
from .model import EMBEDDING, TAIL, Curve, Model, Pass, Weight
from .trace import Held, held

DEEP = 4  # blocks that are traced all; of more like them a few are, and the rest follows


def model_of(model: Any, recipe: Recipe, length: int, computed: tuple[str, ...], packed: bool) -> Model:
    """The numbers of a recipe's model.

    Args:
        model: from `weights.unweighted`; changed.
        recipe: resolved.
        length: tokens of a row, at which the passes are exact; at other lengths they are a curve through it.
        computed: what may be computed in, as `memory.precision` calls it.
        packed: whether rows are packed.

    Raises:
        RecipeError: the adapter does not fit.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    whole = adapted(model, recipe)
    found = tuple(_weights(whole, decoder, head, recipe))
    width = decoder.get_input_embeddings().weight.shape[-1]
    vocabulary = 0 if head is None else head.weight.shape[0]
    passes, counted = _passes(decoder, length, computed, recipe.dtype, packed)
    return Model(found, vocabulary, width, passes, counted)


def _weights(model: nn.Module, decoder: Any, head: Any, recipe: Recipe) -> Iterator[Weight]:
    """Every parameter once, as it is stored and where it lies."""
    stored = _stored(recipe)
    shardable = (not stored.endswith("4") and stored != "4bit") or _in_floats(recipe.quantization)
    table, output = (getattr(module, "weight", None) for module in (decoder.get_input_embeddings(), head))
    blocks = {id(p): i for i, block in enumerate(_blocks(decoder)[2]) for p in block.parameters()}
    quantised = {id(p) for p in _quantised(model, recipe)}
    for parameter in model.parameters():
        part = blocks.get(id(parameter), EMBEDDING if parameter is table and table is not output else TAIL)
        kind = "float32" if parameter.requires_grad else stored if id(parameter) in quantised else recipe.dtype
        yield Weight(tuple(parameter.shape), kind, parameter.requires_grad, part, id(parameter) not in quantised or shardable)


def _stored(recipe: Recipe) -> str:
    """How quantised weights are stored."""
    asked = recipe.quantization
    if asked is None:
        return recipe.dtype
    if getattr(asked, "load_in_8bit", False):
        return "int8"
    return "nf4" if asked.bnb_4bit_use_double_quant else "4bit"


def _in_floats(asked: Any) -> bool:
    """Whether 4-bit weights lie in a floating dtype, as FSDP needs them to cut them."""
    return bool(getattr(getattr(asked, "bnb_4bit_quant_storage", None), "is_floating_point", False))


def _quantised(model: nn.Module, recipe: Recipe) -> Iterator[nn.Parameter]:
    """The matrices that bitsandbytes takes: of linear layers that are not left out; by default the head is."""
    if recipe.quantization is None:
        return
    skipped = getattr(recipe.quantization, "llm_int8_skip_modules", None) or ["lm_head"]
    for name, module in model.named_modules():
        path = name.removeprefix("base_model.model.").replace(".base_layer", "")
        frozen = isinstance(module, nn.Linear) and not module.weight.requires_grad
        if frozen and not any(path == skip or path.startswith(f"{skip}.") for skip in skipped):
            yield module.weight


def _blocks(decoder: Any) -> tuple[Any, str, Any]:
    """The list of a decoder's layers, and where it hangs."""
    for owner in decoder.modules():
        for name, child in owner.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == decoder.config.num_hidden_layers:
                return owner, name, child
    return decoder, "", []


def _passes(decoder: Any, length: int, computed: tuple[str, ...], frozen: str, packed: bool) -> tuple[dict[tuple[str, bool], Pass], str]:
    """Each pass that is asked for, and why any of them could not be traced; such a one is a rough figure."""
    found, reason = {}, ""
    for key in [(c, again) for c in computed for again in (False, True)]:
        try:
            if reason:
                raise RuntimeError(reason)
            found[key] = _pass(decoder, length, key[0], frozen, key[1], packed)
        except Exception as error:  # the model's own code, on tensors without values
            reason = str(error).partition("\n")[0][:120]
            found[key] = _roughly(decoder, *key, frozen)
    return found, reason


def _pass(decoder: Any, length: int, computed: str, frozen: str, again: bool, packed: bool) -> Pass:
    """Curves through the lengths traced: through three where rows may have a dense mask, through two where they have none."""
    lengths = list(dict.fromkeys([length, max(1, length // 2)] + ([] if packed else [max(1, length // 4)])))
    found = [_traced(decoder, n, computed, frozen, again, packed) for n in lengths]
    return Pass(*(_curve(lengths, list(values)) for values in zip(*found, strict=True)))


def _curve(lengths: list[int], values: list[int]) -> Curve:
    """The polynomial through the points."""
    powers = torch.tensor([[float(n) ** i for i in range(len(lengths))] for n in lengths], dtype=torch.float64)
    constant, *rest = torch.linalg.solve(powers, torch.tensor(values, dtype=torch.float64)).tolist()
    per_token, per_pair = [*rest, 0.0, 0.0][:2]
    return Curve(constant, per_token, per_pair)


def _traced(decoder: Any, length: int, computed: str, frozen: str, again: bool, packed: bool) -> Held:
    """Of all blocks: of two numbers of them where there are many alike, and the rest is a line through both."""
    owner, name, blocks = _blocks(decoder)
    depth, period = len(blocks), _period(blocks)
    few, more = max(2, period), max(2, period) + period
    if depth <= max(DEEP, more):
        return held(decoder, length, computed, frozen, again, packed)
    found = []
    for count in (few, more):
        with _cut(owner, name, count):
            found.append(held(decoder, length, computed, frozen, again, packed))
    return Held(*(a + (b - a) * (depth - few) // period for a, b in zip(*found, strict=True)))


def _period(blocks: Any) -> int:
    """After how many blocks they repeat, by the shapes of their parameters; all of them where they do not."""
    kinds = [tuple((name, tuple(p.shape)) for name, p in block.named_parameters()) for block in blocks]
    for period in range(1, len(kinds)):
        if all(kind == kinds[i % period] for i, kind in enumerate(kinds)):
            return period
    return len(kinds)


@contextmanager
def _cut(owner: Any, name: str, count: int) -> Iterator[None]:
    whole = getattr(owner, name)
    setattr(owner, name, nn.ModuleList(list(whole)[:count]))
    try:
        yield
    finally:
        setattr(owner, name, whole)


def _roughly(decoder: Any, computed: str, again: bool, frozen: str) -> Pass:
    """34 bytes a token, layer and width in 16 bits with flash attention, of which 2 with checkpointing and one layer anew.

    Korthikanti et al. 2022, arXiv 2205.05198, equation 1 without its second term, and section 5.
    """
    layers, width = decoder.config.num_hidden_layers, decoder.config.hidden_size
    factor = 2 if computed in ("mixed", "stored") and frozen == "float32" else 1
    kept = factor * width * (2 * layers + 34 if again else 34 * layers)
    most = Curve(0.0, kept + factor * width * 34)
    return Pass(Curve(0.0, kept), most, most)
