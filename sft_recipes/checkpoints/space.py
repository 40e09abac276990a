"""Whether the disk holds what is about to be written: asked before training and before each save."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..recipe import RecipeError

SPARE = 1.02  # times the tensors: their names, the tokenizer and the states beside them
FEW = 32e6  # bytes of those, at least


def room_for(model: Any, adapter: bool, kept: int | None, merged: bool = True) -> dict[str, float]:
    """Bytes that a run writes.

    Args:
        model: as it is trained; its tensors may be 4 bits wide, and are then deployed with 16.
        adapter: whether only an adapter is trained and saved.
        kept: checkpoints that stay, `save_total_limit`; one more is there while it is written.
        merged: whether a deployable folder comes after them.

    Returns:
        `checkpoint`: one of them, with AdamW's two moments in the type of the weight; `in_all`.
    """
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    one = 3 * trained * SPARE + FEW
    deployed = sum(_numbers(p) * max(2, p.element_size()) for p in model.parameters()) if merged else 0
    return {"checkpoint": one, "in_all": one * ((kept or 2) + 1) + (deployed + (trained if adapter else 0)) * SPARE}


def _numbers(parameter: Any) -> int:
    """Of bitsandbytes' 4-bit tensors two numbers share a byte."""
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else parameter.numel()


def refuse_full(folder: Path, needed: float, what: str) -> None:
    """Raise where there is less space than is needed.

    Args:
        folder: where it would be written; it need not be there yet.
        needed: bytes.
        what: that needs them, in words.

    Raises:
        RecipeError: with both figures, and what to do.
    """
    there = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        ways = "make room, take another disk with --output_dir, or keep fewer with --save_total_limit 1"
        raise RecipeError(f"{folder}: {what} needs {_shown(needed)}, the disk has {_shown(free)} free; {ways}")


def _shown(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"
