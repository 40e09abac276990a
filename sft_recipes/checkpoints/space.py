"""What a run writes, and whether the disk holds it: asked by `check`, before training, before each save and before a merge is written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import SaveStrategy

from ..recipe import Recipe, RecipeError

SPARE = 1.02  # times the tensors: their names, the tokenizer and the states beside them
FEW = 32e6  # bytes of those, at least
REST = 200e6  # bytes of the run folder beside: rows, samples, logs, report, the record of the proof
NONE = -1  # checkpoints
WAYS = "make room, take another disk with --output_dir, or keep fewer with --save_total_limit 1"


def written(model: Any, recipe: Recipe, config: Any) -> dict[str, float]:
    """`room_for` a recipe's run: what `check`, `train` and each save compare with the disk.

    Args:
        model: as it is trained, or without weights, on the meta device.
        recipe, config: resolved.
    """
    bases = 2 if recipe.base == "measured" else 1
    kept = config.save_total_limit if config.save_strategy != SaveStrategy.NO else NONE
    return room_for(model, recipe.adapter is not None, kept, bases, getattr(torch, recipe.dtype).itemsize)


def room_for(model: Any, adapter: bool, kept: int | None, bases: int = 1, size: int | None = None) -> dict[str, float]:
    """Bytes that a run writes.

    Args:
        model: as it is trained; its tensors may be 4 bits wide, and are then deployed with 16.
        adapter: whether only an adapter is trained and saved.
        kept: checkpoints that stay, `save_total_limit`; one more is there while it is written. `NONE` where none is.
        bases: that an adapter is merged into; a folder for each until the better one is kept.
        size: bytes of a deployed number; by default what the model has.

    Returns:
        `checkpoint`: one of them, with AdamW's two moments, all in float32 as all that is trained, see `weights.settle`; `merged`: a
        deployable folder; `in_all`, with the rest of the run folder.
    """
    trained = sum(4 * _numbers(p) for p in model.parameters() if p.requires_grad)
    one, merged = 3 * trained * SPARE + FEW, deployed(model, size, adapter)
    saved = one * ((kept or 2) + 1) if kept != NONE else 0.0
    return {"checkpoint": one, "merged": merged, "in_all": saved + merged * bases + (trained * SPARE if adapter else 0) + REST}


def deployed(model: Any, size: int | None = None, adapter: bool = False) -> float:
    """Bytes of the folder that a model is deployed as.

    Args:
        model: whole, or as it is trained.
        size: as of `room_for`.
        adapter: whether what is trained is merged into the rest, and takes no room of its own.
    """
    lasting = (p for p in model.parameters() if not (adapter and p.requires_grad))
    return sum(_numbers(p) * (size or max(2, p.element_size())) for p in lasting) * SPARE + FEW


def _numbers(parameter: Any) -> int:
    """Of bitsandbytes' 4-bit tensors two numbers share a byte."""
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else parameter.numel()


def refuse_full(folder: Path, needed: float, what: str, ways: str = WAYS) -> None:
    """Raise where there is less space than is needed.

    Args:
        folder: where it would be written; it need not be there yet.
        needed: bytes.
        what: that needs them, in words.
        ways: what to do.

    Raises:
        RecipeError: with both figures, and what to do.
    """
    there = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise RecipeError(f"{folder}: {what} needs {_shown(needed)}, the disk has {_shown(free)} free; {ways}")


def _shown(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"
