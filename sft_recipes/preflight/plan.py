"""What a run will take, from counts alone."""

from __future__ import annotations

from typing import Any

import torch

from ..recipe import RecipeError
from .report import Report


def plan(report: Report) -> dict[str, Any]:
    """The layout of the rows, what a step goes through on average, steps, and the size of the weights; nothing is measured.

    Raises:
        RecipeError: the check found faults.
    """
    if report.faults or report.layout is None:
        raise RecipeError(*report.faults)
    recipe, steps = report.resolved.recipe, dict(report.counts["steps"]["with_layout"])
    bits = 4.5 if recipe.quantization is not None else torch.finfo(getattr(torch, recipe.dtype)).bits
    return {
        "parameters": report.counts["parameters"],
        "weights_gb": report.counts["parameters"] * bits / 8 / 1e9,
        "rows": report.layout.name,
        "steps": steps.pop("in_all"),
        "steps_per_epoch": steps.pop("per_epoch"),
        **steps,
    }
