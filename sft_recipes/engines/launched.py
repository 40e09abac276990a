"""Which engine a run was started with: what `accelerate launch` left in the environment, or the configuration's own fields say.

The names are those of accelerate 1.15, `utils/launch.py`: `ACCELERATE_USE_FSDP`, `FSDP_VERSION`, `ACCELERATE_USE_DEEPSPEED`,
`ACCELERATE_DEEPSPEED_ZERO_STAGE` and `PARALLELISM_CONFIG_*`; of torchrun `WORLD_SIZE` and `LOCAL_WORLD_SIZE`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Engine:
    """What a run was started with.

    Attributes:
        name: `none` for one process, `ddp`, `fsdp1`, `fsdp2`, or `zero1` to `zero3`.
        processes: in all.
        local: of them on this machine.
        context, sequence: processes that share a row (context and sequence parallelism), 1 for none.
        loads_on_first: whether only the first process of a machine reads the weights (`fsdp_cpu_ram_efficient_loading`).
        inits_in_parts: whether weights are in parts from the moment they are loaded (`zero3_init_flag`).
    """

    name: str = "none"
    processes: int = 1
    local: int = 1
    context: int = 1
    sequence: int = 1
    loads_on_first: bool = False
    inits_in_parts: bool = False

    @property
    def in_parts(self) -> bool:
        """Whether each process holds a part of the weights."""
        return self.name in ("fsdp1", "fsdp2", "zero3")


def launched(config: Any = None, environment: Mapping[str, str] | None = None) -> Engine:
    """The engine that was asked for, whether or not it can be had here.

    Args:
        config: the run's `RecipeConfig`, whose `fsdp`, `deepspeed` and `parallelism_config` count too; `None` for the environment alone.
        environment: instead of this process's.
    """
    env = os.environ if environment is None else environment
    given = {name: getattr(config, name, None) for name in ("fsdp", "fsdp_plugin_args", "deepspeed", "deepspeed_plugin")}
    processes, local = (int(env.get(name) or 1) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    name = "ddp" if processes > 1 else "none"
    if _true(env, "ACCELERATE_USE_FSDP") or given["fsdp"]:
        version = (given["fsdp_plugin_args"] or {}).get("fsdp_version") if given["fsdp"] else env.get("FSDP_VERSION", "1")
        name = f"fsdp{version}"
    elif _true(env, "ACCELERATE_USE_DEEPSPEED") or given["deepspeed"]:
        stage = getattr(given["deepspeed_plugin"], "zero_stage", None)
        name = f"zero{env.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', 2) if stage is None else stage}"
    return Engine(
        name=name,
        processes=processes,
        local=local,
        context=_size(config, env, "cp_size", "PARALLELISM_CONFIG_CP_SIZE"),
        sequence=_size(config, env, "sp_size", "PARALLELISM_CONFIG_SP_SIZE"),
        loads_on_first=name.startswith("fsdp") and _true(env, "FSDP_CPU_RAM_EFFICIENT_LOADING"),
        inits_in_parts=name == "zero3" and _true(env, "ACCELERATE_DEEPSPEED_ZERO3_INIT"),
    )


def _true(env: Mapping[str, str], name: str) -> bool:
    return env.get(name, "").lower() in ("1", "true", "yes")


def _size(config: Any, env: Mapping[str, str], field: str, variable: str) -> int:
    own = getattr(getattr(config, "parallelism_config", None), field, None)
    return int(own or (env.get(variable) if _true(env, "ACCELERATE_USE_PARALLELISM_CONFIG") else None) or 1)
