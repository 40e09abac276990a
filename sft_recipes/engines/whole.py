"""Weights in parts, whole again in the memory of the first process."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers.integrations import deepspeed as upstream

from ..recipe import RecipeError


def gathered(trainer: Any, everything: bool) -> dict[str, Tensor]:
    """The weights by their names in the model, on the CPU, in the precision they were trained in.

    Args:
        trainer: its weights in parts (FSDP2, ZeRO-3); every process calls this.
        everything: also those that were not trained.

    Returns:
        on the first process; an empty dictionary on the others.
    """
    if trainer.is_deepspeed_enabled:
        return _from_zero(trainer.accelerator.unwrap_model(trainer.model), everything, trainer.is_world_process_zero())
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=not everything)
    found: dict[str, Any] = get_model_state_dict(trainer.model, options=options)
    return found


def _from_zero(model: nn.Module, everything: bool, first: bool) -> dict[str, Tensor]:
    """One parameter at a time; DeepSpeed's own consolidation rounds them to 16 bits."""
    import deepspeed

    kept = model.state_dict()
    found = {name: buffer.cpu() for name, buffer in model.named_buffers() if everything and first and name in kept}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or everything:
            with deepspeed.zero.GatheredParameters([parameter]):
                if first:
                    found[name] = parameter.detach().cpu().clone()
    return found


def rebuilt(model: nn.Module, weights: dict[str, Tensor]) -> Any:
    """A plain model of gathered weights, on the CPU, to be saved; what is not saved with it (rotary tables) is left out.

    Args:
        model: in parts.
        weights: all of its, from `gathered`.

    Raises:
        RecipeError: a weight is not among them.
    """
    kind: Any = next(k for k in type(model).__mro__ if not issubclass(k, FSDPModule))  # FSDP2 derives a class of its own from each
    config: Any = model.config
    with torch.device("meta"):
        plain = kind._from_config(copy.deepcopy(config))
    _, unexpected = plain.load_state_dict(weights, strict=False, assign=True)
    plain.tie_weights()
    if names := sorted({*unexpected, *(name for name, p in plain.named_parameters() if p.is_meta)}):
        raise RecipeError(f"the trained weights were not gathered whole: {', '.join(names[:5])}")
    plain.generation_config = copy.deepcopy(model.generation_config)
    return plain


@contextmanager
def unparted() -> Iterator[None]:
    """Within the block models are made and loaded whole under ZeRO-3 too; transformers would part them, and wait for other processes."""
    reference = upstream._hf_deepspeed_config_weak_ref
    config = reference() if reference is not None else None
    upstream.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            upstream.set_hf_deepspeed_config(config)
