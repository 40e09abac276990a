"""What a training run costs: seconds, supervised tokens, memory."""

from __future__ import annotations

import ctypes
import gc
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, Trainer, TrainerCallback

from sft_recipes.rows import IGNORED

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Cost:
    """Of a run's optimiser steps.

    Attributes:
        steps: how many.
        seconds: by the clock, without the first step, in which memory is asked for that the later ones have.
        supervised: tokens with a label that were trained in these seconds.
        memory: bytes at the peak, above what the process held before the first step; `None` where this is not Linux.
        loss: mean over all steps, in nats.
    """

    steps: int
    seconds: float
    supervised: int
    memory: int | None
    loss: float


def cost(trainer: Trainer) -> Cost:
    """Train, and measure it.

    The peak is the process's: the kernel keeps the most memory that it has held (`VmHWM`), and begins anew when asked to.
    """
    watch = Watch()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(watch)
    own = trainer.training_step

    def counted(model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
        if trainer.state.global_step:
            watch.supervised += int((inputs["labels"][:, 1:] != IGNORED).sum())
        return own(model, inputs, *rest)

    trainer.training_step = counted
    result = trainer.train()
    return Cost(result.global_step, watch.seconds, watch.supervised, watch.memory, result.training_loss)


class Watch(TrainerCallback):
    """Counts from the end of the first step to that of the last; memory from before the first."""

    supervised = 0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.before = _reset()

    def on_step_end(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.started = time.perf_counter()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.started
        self.memory = None if self.before is None else status("VmHWM") - self.before


def _reset() -> int | None:
    """What the process holds, when it has given back what it can; the peak is counted from here."""
    gc.collect()
    if not RESET.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)
    RESET.write_text("5")
    return status("VmRSS")


def status(name: str) -> int:
    """A figure of this process that the kernel keeps, such as `VmRSS`, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
