"""FSDP2 as it would be on many devices, on this one: PyTorch shards tensors without memory among processes that are not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ..recipe import Recipe
from .shapes import _blocks


def simulated(model: Any, recipe: Recipe, devices: int) -> dict[str, float] | None:
    """What the first of so many processes holds after `fully_shard`, of the base's weights; `None` inside of a distributed run.

    Each block is a unit of its own and the rest is the last one, as accelerate has it.

    Args:
        model: from `weights.unweighted`; changed.
        recipe: names it.
        devices: processes.

    Returns:
        `parameters`, elements on the first process; `gb_float32`, their size in float32.
    """
    if dist.is_initialized():
        return None
    with among(devices):
        mesh = init_device_mesh("cpu", (devices,))
        for block in _blocks(model.get_decoder())[2]:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        local = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
        count = sum(p.numel() for p in local)
    return {"parameters": count, "gb_float32": 4 * count / 1e9}


@contextmanager
def among(devices: int) -> Iterator[None]:
    """Within the block this is the first of so many processes, which do not exist; nothing is sent."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=devices)
    try:
        yield
    finally:
        dist.destroy_process_group()
