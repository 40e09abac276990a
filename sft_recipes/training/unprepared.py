"""An evaluation before training, on several processes: the model must still be made ready for training afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def still_unprepared(trainer: Any) -> Iterator[None]:
    """Within the block a trainer's model may be evaluated before it was ever prepared for training.

    accelerate prepares a model once, and transformers has it done by an evaluation without what training needs: DDP would be left
    out, and each process would train a model of its own without a word. So it is forgotten that it was done. Where the weights lie in
    parts (FSDP, DeepSpeed), nothing is changed.
    """
    accelerator = trainer.accelerator
    fresh = not accelerator._models and not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled)
    yield
    if fresh:
        accelerator._models.clear()
        accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)._is_accelerate_prepared = False
