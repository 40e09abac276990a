"""Weights in parts: what has to be said to accelerate before and after its `Accelerator` is made.

accelerate 1.15 shards where its state is that of GPUs, and leaves a launch on CPUs to DDP without a word (`state.py`, the list of
device kinds in `AcceleratorState.__init__`), though `fully_shard` works there. It wraps what `_no_split_modules` names, and stops
at a name that the model at hand does not have. And under bfloat16 it adds up gradients in bfloat16, where DDP has float32.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from torch import nn

from ..recipe import RecipeError
from .launched import Engine, launched

KINDS = {"fsdp1": "FSDP", "fsdp2": "FSDP", "zero1": "DEEPSPEED", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}


def ask_for_parts(config: Any) -> None:
    """Let accelerate shard on CPUs too; to be called between the configuration and the trainer that is made with it.

    Args:
        config: the run's `RecipeConfig`.
    """
    state = PartialState()
    if launched(config).name.startswith("fsdp") and state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU  # which `AcceleratorState` then turns into FSDP; the device stays


def ready(trainer: Any) -> None:
    """Set what FSDP2 wraps and how it adds up gradients; called once a trainer has its model and accelerator.

    Args:
        trainer: transformers'.

    Raises:
        RecipeError: the engine is not the one that the run was started with.
    """
    asked = launched(trainer.args)
    if fault := another(asked, trainer.accelerator.distributed_type.value, trainer.accelerator.num_processes):
        raise RecipeError(fault)
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is None or asked.name != "fsdp2":
        return
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = layers(trainer.model)
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = dataclasses.replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32)


def another(asked: Engine, found: str, processes: int) -> str:
    """The fault of a run that has another engine or other processes than it was started with, else empty.

    Args:
        asked: from `launched`.
        found: accelerate's name of what there is, a `DistributedType`.
        processes: that know of each other.
    """
    if processes != asked.processes:
        return (
            f"{asked.processes} processes were started, and each knows of {processes}: every one would train a model of its own; "
            "start them with accelerate launch --config_file launch/ddp.yaml (or make train GPUS=... ENGINE=ddp)"
        )
    if asked.name in KINDS and found != KINDS[asked.name]:
        return (
            f"{asked.name} was asked for, and accelerate gives {found}: the weights would not be in parts; "
            f"start it with accelerate launch --config_file launch/{asked.name}.yaml"
        )
    return ""


def layers(model: nn.Module) -> list[str]:
    """The classes that FSDP2 wraps one by one: those that the model's own `_no_split_modules` names, and that it has.

    Args:
        model: may be wrapped by PEFT.

    Raises:
        RecipeError: there is none; the whole model would be one unit, and lie on each device at once.
    """
    named = getattr(model, "_no_split_modules", None) or []
    found = {type(module).__name__ for module in model.modules()}
    chosen = sorted(name for name in named if name in found)
    if not chosen:
        raise RecipeError(
            f"fsdp2: {type(model).__name__} does not say what its layers are (_no_split_modules); "
            "name their class with fsdp_transformer_layer_cls_to_wrap in the fsdp_config of a copy of launch/fsdp2.yaml"
        )
    return chosen


def late(trainer: Any) -> bool:
    """Whether the engine takes a model only together with its optimiser, so that nothing can be evaluated before training begins."""
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def in_parts(trainer: Any) -> bool:
    """Whether each process holds a part of the weights."""
    return bool(trainer.is_fsdp_enabled or (trainer.is_deepspeed_enabled and trainer.accelerator.state.deepspeed_plugin.zero_stage == 3))


def place(quantised: bool) -> torch.device | None:
    """Where a base is loaded: onto the CPU where the engine will part it among devices of which none may have room for all of it.

    Args:
        quantised: bitsandbytes quantises on the device.

    Returns:
        `None` for the process's own device.
    """
    return torch.device("cpu") if launched().in_parts and not quantised else None


def machine(gpu: bool) -> dict[str, Any]:
    """The fields of the configuration that the machine decides for an engine: DeepSpeed on CPUs wants its backend by name.

    Args:
        gpu: whether there is a CUDA device.
    """
    if gpu or not launched().name.startswith("zero"):
        return {"use_cpu": not gpu}
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return {"use_cpu": False, "ddp_backend": "gloo"}  # accelerate 1.15 passes DeepSpeed over where `use_cpu` is set
