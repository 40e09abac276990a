"""Two trainings that take turns, an optimiser step each, in one process: both are `train()` itself, and never two at a time."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from .device import allocated, begin_peak, clock, peak


@dataclass(frozen=True)
class Step:
    """One optimiser step.

    Attributes:
        seconds: from the end of the one before, its data among them, to its own, when the device was done.
        above: bytes at its peak above what was held before it.
        kept: bytes that stay after it: the optimiser's state after the first.
    """

    seconds: float
    above: int
    kept: int


class Turn(TrainerCallback):
    """Lets a training go on only when it is told to, and takes down what each step cost."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.error = ""
        self.left = False
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)

    def take(self) -> None:
        """One step; called by who shares out the turns."""
        self._go.release()
        self._done.acquire()
        if self.error:
            raise RuntimeError(self.error)

    def run(self, trainer: Trainer) -> None:
        """The thread of the training."""
        if torch.cuda.is_available():
            torch.cuda.set_device(0)
        try:
            trainer.train()
        except _Left:
            pass
        except torch.OutOfMemoryError as error:  # without its frames, which hold what did not fit
            self.error = f"out of memory: {str(error).partition('.')[0]}"
        except Exception:
            self.error = traceback.format_exc(limit=-3)
        self._done.release()

    def leave(self) -> None:
        """The training ends where it is."""
        self.left = True
        self._go.release()

    def _wait(self) -> None:
        self._go.acquire()
        if self.left:
            raise _Left
        begin_peak()
        self._held, self._started = allocated(), clock()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._wait()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        seconds = clock() - self._started
        self.steps.append(Step(seconds, peak() - self._held, allocated() - self._held))
        self._done.release()
        self._wait()


class _Left(Exception):
    """A training that was told to end."""


def alternate(trainers: Mapping[str, Trainer], rounds: int, until: Any = None) -> dict[str, Sequence[Step]]:
    """Steps of trainings by turns: one of each that is not counted, then rounds in which the order is turned around each time.

    Args:
        trainers: each with at least `rounds + 2` steps to take.
        rounds: steps of each.
        until: a `Budget`; when it is out, no further round begins.

    Returns:
        the steps of each, the first among them.

    Raises:
        RuntimeError: one of them failed, with its last words.
    """
    turns = {name: Turn() for name in trainers}
    threads = []
    for name, trainer in trainers.items():
        trainer.add_callback(turns[name])
        threads.append(threading.Thread(target=turns[name].run, args=[trainer], daemon=True))
        threads[-1].start()
    try:
        for number in range(rounds + 1):
            if number and until is not None and until.left <= 0:
                break
            for name in sorted(turns, reverse=bool(number % 2)):
                turns[name].take()
    finally:
        for turn, thread in zip(turns.values(), threads, strict=True):
            turn.leave()
            thread.join()
        for name, trainer in trainers.items():
            trainer.remove_callback(turns[name])
            trainer.model.zero_grad(set_to_none=True)
    return {name: turn.steps for name, turn in turns.items()}
