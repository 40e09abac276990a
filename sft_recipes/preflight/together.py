"""What is known not to work together on several processes, each with its reason and its mend.

Known from the sources of what is installed (accelerate 1.15, transformers 5.23, TRL 1.16, torch 2.13), named at each; what nobody knows
is left to the run.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from ..engines import Engine
from ..recipe import Recipe

WHOLE = "every process reads the weights before they are parted (rows of unused tokens, the proof of packed rows)"


def faults(recipe: Recipe, config: Any, engine: Engine, devices: int) -> list[str]:
    """One line for each fault.

    Args:
        recipe, config: resolved.
        engine: from `engines.launched`.
        devices: CUDA devices of this machine; 0 for a run on CPUs.
    """
    return [*_processes(engine, devices), *combined(recipe, config, engine)]


def combined(recipe: Recipe, config: Any, engine: Engine) -> list[str]:
    """Those of the faults that are there on every machine.

    Args:
        recipe, config, engine: as `faults` takes them.
    """
    found = [*_rows(engine), *_loading(engine), *_saving(config, engine)]
    return found + (_quantised(recipe, config, engine) if recipe.quantization is not None else [])


def _processes(engine: Engine, devices: int) -> list[str]:
    if engine.name == "fsdp1":  # transformers removes it in 5.20; `evaluate` and `engines` know the modules of FSDP2 alone
        return ["FSDP1 is not supported: use FSDP2, fsdp_version: 2 (launch/fsdp2.yaml)"]
    if engine.name.startswith("zero") and find_spec("deepspeed") is None:
        return [f"{engine.name}: DeepSpeed is not installed: pip install deepspeed, or take ENGINE=fsdp2, which needs nothing more"]
    if devices and engine.local > devices:  # accelerate/state.py takes the rank modulo their number
        return [f"{engine.local} processes on a machine with {devices} CUDA devices would share them: --num_processes {devices} (GPUS=)"]
    return []


def _rows(engine: Engine) -> list[str]:
    """transformers/trainer.py cuts each row along its length; TRL refuses context parallelism with its own packing."""
    shared = [("context", "cp_size", engine.context), ("sequence", "sp_size", engine.sequence)]
    return [
        f"{name} parallelism ({field} {size}): a row is split among processes, where the mask that keeps packed conversations apart is "
        f"dropped, and the loss, which is taken over whole rows here, loses a token at each border; leave {field} at 1"
        for name, field, size in shared
        if size > 1
    ]


def _loading(engine: Engine) -> list[str]:
    found = []
    if engine.loads_on_first:  # transformers/modeling_utils.py leaves the weights of the other processes empty
        found.append(f"fsdp_cpu_ram_efficient_loading: only one process would have the weights, and {WHOLE}; set it to false")
    if engine.inits_in_parts:  # transformers/modeling_utils.py, zero.Init
        found.append(f"zero3_init_flag: no process would have a whole weight, and {WHOLE}; set it to false")
    return found


def _saving(config: Any, engine: Engine) -> list[str]:
    """transformers/trainer.py, `create_accelerator_and_postprocess`."""
    if config.save_only_model and config.load_best_model_at_end and engine.name.startswith(("fsdp", "zero")):
        return [f"save_only_model: under {engine.name} the best checkpoint cannot be loaded from such a one; leave it out"]
    return []


def _quantised(recipe: Recipe, config: Any, engine: Engine) -> list[str]:
    """4 bits in the elements of another type: FSDP2 shards and casts them as what they seem to be (accelerate/utils/fsdp_utils.py)."""
    if engine.name == "zero3":  # transformers/modeling_utils.py: zero.Init passes over a quantised model; huggingface/peft#2016
        return ["zero3 does not part quantised weights, each device would hold them all: take ENGINE=zero2, ddp or fsdp2"]
    if engine.name != "fsdp2":
        return []
    if not getattr(recipe.quantization, "load_in_4bit", False):
        return ["fsdp2 parts weights of floating types alone, and 8-bit ones have none: quantise to 4 bits, or take ENGINE=ddp"]
    stored = str(recipe.quantization.bnb_4bit_quant_storage).removeprefix("torch.")
    computed = "bfloat16" if config.bf16 else "float16" if config.fp16 else recipe.dtype
    if stored == computed:
        return []
    floating = getattr(torch, stored).is_floating_point
    reason = f"cast to {computed}, which destroys their bits" if floating else "not parted, so that each device holds them all"
    return [
        f"fsdp2: the 4-bit weights are stored as {stored}, the others compute in {computed}: they would be {reason}; "
        f'give the BitsAndBytesConfig bnb_4bit_quant_storage="{computed}", or take ENGINE=ddp'
    ]
