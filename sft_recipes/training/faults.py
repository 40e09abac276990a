"""What a machine does to a training, as one line for a person: memory that runs out, a data worker that is killed.

The line says which figures to lower and by how much, as `plan` counts it, such that a step stays as large as it was, and where the last
good checkpoint is.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch

from ..recipe import RecipeError

# torch's CPU allocator and CUDA's libraries raise plain RuntimeErrors (c10/core/impl/alloc_cpu.cpp, aten/src/ATen/cuda/Exceptions.h)
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)
ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+ \w+)")
WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")  # torch/utils/data/dataloader.py, torch/csrc/DataLoader.cpp


@dataclass(frozen=True)
class Sizes:
    """What of a run takes memory.

    Attributes:
        batch: `per_device_train_batch_size`, in conversations.
        accumulation: `gradient_accumulation_steps`.
        row_tokens: of a packed row, where the recipe names it.
        longest: tokens of the longest row.
        checkpointing: whether activations are computed twice and not kept.
        eval_batch: `per_device_eval_batch_size`.
        max_new_tokens: of a generated turn.
        workers: `dataloader_num_workers`.
    """

    batch: int
    accumulation: int
    row_tokens: int | None
    longest: int
    checkpointing: bool
    eval_batch: int
    max_new_tokens: int
    workers: int


def lowered(sizes: Sizes, phase: str = "training") -> list[str]:
    """What to halve where nothing can be computed, the mildest first: what is trained stays the same but for the last.

    Args:
        sizes: of the run that ran out of memory.
        phase: `training`, `evaluation` or `generation`.

    Returns:
        flags with what they change, one text each; never none.
    """
    if phase == "evaluation" and sizes.eval_batch > 1:
        return [f"--per_device_eval_batch_size {sizes.eval_batch // 2} (it was {sizes.eval_batch}; the scores stay)"]
    if phase == "generation":
        return [f"--max_new_tokens {max(1, sizes.max_new_tokens // 2)} (it was {sizes.max_new_tokens})"]
    found = [] if sizes.checkpointing else ["--gradient_checkpointing true (a second forward pass in place of kept activations)"]
    smaller = _smaller_rows(sizes)
    return [*found, smaller] if smaller else [*found, f"--max_length {max(1, sizes.longest // 2)} (the longest row has {sizes.longest})"]


def _smaller_rows(sizes: Sizes) -> str:
    """Rows or batches of half the size, twice as many of them a step; empty where they cannot be."""
    packed = sizes.row_tokens is not None
    now = sizes.row_tokens or sizes.batch
    times = 2 if packed else next((n for n in range(2, now + 1) if now % n == 0), 1)
    if times == 1 or (packed and now // 2 < sizes.longest):
        return ""
    name = "row_tokens" if packed else "per_device_train_batch_size"
    accumulation = sizes.accumulation * times
    return (
        f"--{name} {now // times} --gradient_accumulation_steps {accumulation} "
        f"(they were {now} and {sizes.accumulation}; the step stays as large)"
    )


def told(train: Callable[..., Any]) -> Callable[..., Any]:
    """A trainer's `train` whose memory and worker faults are `RecipeError`s, for notebook and command alike."""

    @wraps(train)
    def run(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return train(trainer, *args, **kwargs)
        except (RuntimeError, MemoryError) as error:
            line = fault(error, trainer)
            if not line:
                raise
            # without its frames, which hold the tensors: a notebook is to have the memory back
            raise RecipeError(f"{line}; {trainer._kept()}") from error.with_traceback(None)

    return run


def fault(error: BaseException, trainer: Any) -> str:
    """The line for an error that a machine's limits caused; empty for any other.

    Args:
        error: as torch or Python raised it.
        trainer: a `RecipeTrainer`.
    """
    text = str(error)
    step, sizes = trainer.state.global_step + 1, sizes_of(trainer)
    if found := WORKER.search(text):
        return (
            f"step {step}: a data worker (pid {found[1].strip()}) was killed, by the system if it was out of memory: "
            f"--dataloader_num_workers {sizes.workers // 2} (it was {sizes.workers}; 0 reads without workers)"
        )
    if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not NO_MEMORY.search(text):
        return ""
    asked = f" ({found[1]} more were asked for)" if (found := ASKED.search(text)) else ""
    phase = _phase(error)
    return f"step {step}: out of memory in {phase}{asked}; try {_advised(trainer, sizes, phase)}"


def _advised(trainer: Any, sizes: Sizes, phase: str) -> str:
    """What to lower: in training what the plan computes to fit, else, and where it cannot count, halves."""
    halved = ", then ".join(lowered(sizes, phase))
    if phase != "training":
        return halved
    try:  # whatever the model's code, the machine or the plan raises: a fault is being told already
        from .. import plan
        from ..preflight import Report

        return plan.lowered(Report(trainer.resolved, trainer.prepared, trainer.layout))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return f"{halved}; halves, as `plan` could not count it: {reason}"


def _phase(error: BaseException) -> str:
    """What went on when it was raised, by the functions it came through."""
    names = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    return "generation" if "_generated" in names else "evaluation" if "evaluation_loop" in names else "training"


def sizes_of(trainer: Any) -> Sizes:
    """The `Sizes` of a `RecipeTrainer`."""
    config, recipe = trainer.resolved.config, trainer.resolved.recipe
    packed = trainer.layout.packed
    return Sizes(
        batch=config.per_device_train_batch_size,
        accumulation=config.gradient_accumulation_steps,
        row_tokens=recipe.row_tokens if packed is not None else None,
        longest=max(len(row["input_ids"]) for row in trainer.prepared.rows),
        checkpointing=bool(config.gradient_checkpointing),
        eval_batch=config.per_device_eval_batch_size,
        max_new_tokens=recipe.max_new_tokens,
        workers=config.dataloader_num_workers,
    )
