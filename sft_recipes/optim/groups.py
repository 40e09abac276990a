"""Which weights decay, and at which rate each learns: parameter groups for AdamW.

Decay (arXiv 1711.05101) pulls weights to zero. That is meant for the matrices of a model, embeddings and convolutions among
them; a norm's scale, a bias or a Mamba's `A_log` has its place elsewhere. transformers tells them apart by patterns of names,
which miss some; here the module that holds a parameter decides, then the parameter's own name, then its shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

HOLDS_MATRIX = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd, Conv1D)
ADAPTED = re.compile(r"\.(base_layer|(modules_to_save|original_module)\.[^.]+)(?=\.)")  # levels that PEFT puts between
# Never matrices, whatever their rank: Mamba's A and D, attention sinks, scales; biases; DoRA's magnitudes, single rows of a table.
VECTOR = re.compile(r"A_log|D|sinks?|(\w+_)?(scales?|scaling|gamma|gain|lambda)")
BIAS = re.compile(r"(\w+_)?bias(es)?(_[uv]|_table|_values)?")  # T5's table of relative positions is one, too
PICKED = {"lora_magnitude_vector", "trainable_tokens_delta"}
LORA = re.compile(r"lora_(embedding_)?[AB]")
LORA_B = re.compile(r"(?:^|\.)lora_(embedding_)?B\.")


def decays(model: nn.Module) -> set[str]:
    """The parameters that decay, trained or not, by the names that `named_parameters` gives them.

    Raises:
        ValueError: the model is in FSDP's first version, which has made pieces of one long vector of them all.
    """
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ValueError("FSDP's first version hides which weights are matrices: set `fsdp_version: 2` in accelerate's configuration")
    return {name for name, parameter in model.named_parameters() if _decays(model, name, parameter)}


def parameter_groups(
    model: nn.Module, weight_decay: float, learning_rate: float | None = None, loraplus_lr_ratio: float | None = None
) -> list[dict[str, Any]]:
    """Groups for `torch.optim.AdamW` over the trained parameters, each once; none is empty, the order is always the same.

    LoRA+ (arXiv 2402.12354) lets LoRA's B matrices, and what biases they have, learn faster than the rest. PEFT's own
    `create_loraplus_optimizer` sets the decay to 0 unless told otherwise, speeds up every other vector as well, and gives
    LoRA on embeddings a rate of 1e-6. Here B decays as it did; AdamW multiplies rate and decay, so the faster B also
    decays `loraplus_lr_ratio` times as much in a step.

    Args:
        model: with its adapter, if any; anywhere, the meta device included.
        weight_decay: of matrices.
        learning_rate: of everything but B; needed for LoRA+ only.
        loraplus_lr_ratio: how many times faster B learns; `None` leaves every rate to the optimiser.

    Returns:
        with decay before without, B last, because trainers log the rate of the first group.

    Raises:
        ValueError: LoRA+ without learning rate, or without a LoRA.
    """
    matrices = decays(model)
    found: dict[tuple[bool, float, Any], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            fast = loraplus_lr_ratio is not None and bool(LORA_B.search(name))
            mesh = getattr(parameter, "device_mesh", None)  # AdamW's fused step takes one mesh of devices at a time
            found.setdefault((fast, -weight_decay if name in matrices else 0.0, mesh), []).append(parameter)
    ordered = sorted(found.items(), key=lambda item: item[0][:2])
    groups: list[dict[str, Any]] = [{"params": params, "weight_decay": abs(decay)} for (_, decay, _), params in ordered]
    if loraplus_lr_ratio is None:
        return groups
    if learning_rate is None or not any(fast for fast, _, _ in found):
        raise ValueError(f"loraplus_lr_ratio: {'no learning rate' if learning_rate is None else 'no B of a LoRA is trained'}")
    for group, ((fast, _, _), _) in zip(groups, ordered, strict=True):
        group["lr"] = learning_rate * loraplus_lr_ratio if fast else learning_rate
    return groups


def account(model: nn.Module, groups: Iterable[dict[str, Any]], learning_rate: float) -> list[dict[str, Any]]:
    """Plain data about groups: decay, how many times `learning_rate` they learn at, tensors, parameters, and names.

    Names are folded: layers to `*`, without what PEFT adds; each has the number of its tensors.
    """
    names = {id(parameter): folded(name) for name, parameter in model.named_parameters()}
    found = []
    for group in groups:
        counted: dict[str, int] = {}
        for parameter in group["params"]:
            name = names[id(parameter)]
            counted[name] = counted.get(name, 0) + 1
        found.append(
            {
                "weight_decay": group["weight_decay"],
                "learning_rate_multiple": round(group.get("lr", learning_rate) / learning_rate, 9),
                "tensors": len(group["params"]),
                "parameters": sum(parameter.numel() for parameter in group["params"]),
                "names": counted,
            }
        )
    return found


def folded(name: str) -> str:
    """`base_model.model.model.layers.3.mlp.up_proj.lora_A.default.weight` to `model.layers.*.mlp.up_proj.lora_A.weight`."""
    name = re.sub(r"\.default(?=\.|$)", "", name.removeprefix("base_model.model."))
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _decays(model: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix: something that maps, or a table of embeddings."""
    shape: Sequence[int] = getattr(parameter, "ds_shape", parameter.shape)  # DeepSpeed leaves an empty one in place of it
    holder = model.get_submodule(name.rpartition(".")[0])
    path = ADAPTED.sub("", name).split(".")
    if isinstance(holder, nn.ParameterDict):  # PEFT's, whose keys are names of adapters
        del path[-1]
    own, kept = path[-1], path[-2] if len(path) > 1 else ""
    named = kept if own == "weight" else own
    if len(shape) < 2 or VECTOR.fullmatch(own) or BIAS.fullmatch(named) or not PICKED.isdisjoint(path):
        return False
    if own == "weight" and isinstance(holder, HOLDS_MATRIX):
        return True  # even in a norm that computes its scales, and Inkling's `NormedEmbedding`
    if any("norm" in text.lower() for text in (type(holder).__name__, kept, own)):
        return False
    return bool(LORA.fullmatch(own)) or sum(side > 1 for side in shape) > 1  # RWKV's mixes are (1, 1, hidden)
