"""The device that is measured on: what it is, its clock, its memory, and how fast it multiplies."""

from __future__ import annotations

import platform
import subprocess
import time
from datetime import date
from importlib.metadata import version
from typing import Any

import torch

SIDE, ROUNDS = 8192, 9  # of the matrix product
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")


class Budget:
    """So many seconds, of which each section gets a share.

    Args:
        seconds: of all.
    """

    def __init__(self, seconds: float):
        self.ends = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self.ends - time.monotonic()

    def until(self, kept: float) -> Budget:
        """What is left but for these seconds, which later sections need."""
        return Budget(max(0.0, self.left - kept))


def cuda() -> bool:
    return torch.cuda.is_available()


def here() -> torch.device:
    return torch.device("cuda", 0) if cuda() else torch.device("cpu")


def clock() -> float:
    """Seconds, when everything that was asked of the device is done."""
    if cuda():
        torch.cuda.synchronize()
    return time.perf_counter()


def allocated() -> int:
    """Bytes that tensors hold on the device; 0 on the CPU, where nobody counts."""
    return torch.cuda.memory_allocated() if cuda() else 0


def peak() -> int:
    """The most of them since `begin_peak`."""
    return torch.cuda.max_memory_allocated() if cuda() else 0


def begin_peak() -> None:
    if cuda():
        torch.cuda.reset_peak_memory_stats()


def beside() -> int:
    """Bytes that the device holds beside what torch's allocator asked for: CUDA's context and libraries. Nobody else may be on it."""
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


def product() -> list[float]:
    """bf16 operations a second of a large matrix product of random numbers, of several after two that are not counted."""
    one, other = (torch.randn(SIDE, SIDE, device=here(), dtype=torch.bfloat16) for _ in range(2))
    found = []
    for number in range(ROUNDS + 2):
        started = clock()
        for _ in range(4):
            one @ other
        if number > 1:
            found.append(4 * 2 * SIDE**3 / (clock() - started))
    return found


def described(scale: str) -> dict[str, Any]:
    """Device, driver, versions, date."""
    found = {"device": torch.cuda.get_device_name() if cuda() else f"no CUDA device ({platform.machine()} CPU)", "scale": scale}
    if cuda():
        found["memory"] = f"{torch.cuda.get_device_properties(0).total_memory / 1e9:.1f} GB"
        found["driver"] = _driver()
        found["cuda"] = str(torch.version.cuda)
    if scale == "tiny":
        found["models"] = "small ones of these names, in float32; their speeds are no figures of a GPU"
    found |= {"date": date.today().isoformat(), "python": platform.python_version()}
    return {**found, **{name: version(name) for name in PACKAGES}}


def _driver() -> str:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout.strip().partition("\n")[0] or "unknown"
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
