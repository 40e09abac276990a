"""The devices that a plan can be made for.

Memory is the maker's figure in 10^9 bytes; a device shows a little more. Speeds are the makers' peaks without sparsity: of bfloat16 on
tensor cores, and of float32 outside of them, as TF32 is off by default. Prices are assumptions and go out of date: `--price` replaces them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..recipe import RecipeError, unknown_name

PRICES = "assumed from what clouds asked for on demand in 2025"


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        name: as `--gpu` takes it.
        label: as a person reads it.
        memory: bytes.
        bfloat16, float32: floating-point operations a second at the peak; `None` where they are not known.
        price: US dollars an hour; `None` where nothing is assumed.
        cuda: whether what runs on it is what runs on CUDA: mixed precision, the fused head, gradient checkpointing unless told otherwise.
    """

    name: str
    label: str
    memory: float
    bfloat16: float | None
    float32: float | None
    price: float | None
    cuda: bool = True


KNOWN = {
    device.name: device
    for device in (
        Device("b200", "B200 180 GB", 180e9, 2250e12, 75e12, 5.50),
        Device("h200", "H200 141 GB", 141e9, 989e12, 67e12, 3.80),
        Device("h100", "H100 SXM 80 GB", 80e9, 989e12, 67e12, 3.00),
        Device("a100-80", "A100 80 GB", 80e9, 312e12, 19.5e12, 1.80),
        Device("a100-40", "A100 40 GB", 40e9, 312e12, 19.5e12, 1.30),
        Device("l40s", "L40S 48 GB", 48e9, 362e12, 91.6e12, 1.20),
        Device("a10g", "A10G 24 GB", 24e9, 70e12, 35e12, 1.00),
        Device("l4", "L4 24 GB", 24e9, 121e12, 30e12, 0.70),
        Device("rtx4090", "RTX 4090 24 GB", 24e9, 165e12, 82.6e12, 0.50),
        Device("rtx3090", "RTX 3090 24 GB", 24e9, 71e12, 35.6e12, 0.25),
    )
}


def find(name: str) -> Device:
    """A device by its name.

    Raises:
        RecipeError: nobody here knows it; with the nearest name.
    """
    typed = name.lower().replace("_", "-").replace(" ", "")
    if typed == "cpu":
        return here(cpu=True)
    if typed not in KNOWN:
        raise RecipeError(f"{unknown_name('GPU', name, KNOWN)} Known: cpu, {', '.join(KNOWN)}")
    return KNOWN[typed]


def here(cpu: bool = False) -> Device:
    """What this machine has: its CUDA device, or its memory for the CPU; of the speed of neither is anything assumed.

    Args:
        cpu: the CPU in any case.
    """
    if torch.cuda.is_available() and not cpu:
        found = torch.cuda.get_device_properties(torch.cuda.current_device())
        known = next((device for name, device in KNOWN.items() if name.split("-")[0].upper() in found.name.upper().replace(" ", "")), None)
        speeds = (known.bfloat16, known.float32, known.price) if known else (None, None, None)
        return Device("here", f"{found.name} of this machine", float(found.total_memory), *speeds)
    return Device("cpu", "the CPU of this machine", _memory(), None, None, None, cuda=False)


def _memory(root: Path = Path("/")) -> float:
    """Bytes that this process may have: the machine's, or the least that a container, a batch system or a service allows it."""
    return min([float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")), *_limits(root)])


def _limits(root: Path) -> Iterator[float]:
    """What is set for this process's control group and those above it: Linux, admin-guide/cgroup-v2 and cgroup-v1/memory."""
    groups, mount = root / "proc/self/cgroup", root / "sys/fs/cgroup"
    for line in groups.read_text().splitlines() if groups.is_file() else []:
        _, kinds, path = line.split(":", 2)
        if "memory" not in kinds.split(",") and kinds:
            continue
        top, name = (mount / "memory", "memory.limit_in_bytes") if kinds else (mount, "memory.max")
        inner = top / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(top) and (folder / name).is_file():
                said = (folder / name).read_text().strip()
                yield float(said) if said.isdigit() else float("inf")  # `max`: no limit
