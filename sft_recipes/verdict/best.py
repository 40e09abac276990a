"""Which checkpoint is deployed, and why; and whether the lowest held-out loss would have been another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def evaluations(history: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """What was measured on held-out data, by step, in order; step 0 is before training, and of two at one step the later counts.

    Args:
        history: transformers' `log_history`.
    """
    return dict(sorted({entry["step"]: entry for entry in history if "eval_loss" in entry}.items()))


def best(
    history: Sequence[dict[str, Any]], metric: str, greater_is_better: bool, kept: int, checkpoint: str | None, why_last: str = ""
) -> dict[str, Any]:
    """The record of the choice, as `metrics.json` has it under `best`.

    Args:
        history: transformers' `log_history`.
        metric: that chose, with or without `eval_`.
        greater_is_better: of it.
        kept: the step whose weights are deployed.
        checkpoint: the folder they were read from; `None` where they are those of the last step, which nothing was compared with.
        why_last: in that case, why.

    Returns:
        `metric`, `step`, its `value`, the number of `evaluations` after the first step, `lowest_loss` with its step and the metric
        there, whether the two `agree`, and all of it `said` in a sentence.
    """
    name = metric.removeprefix("eval_")
    key = f"eval_{name}"
    after = {step: entry for step, entry in evaluations(history).items() if step}
    found: dict[str, Any] = {"metric": name, "greater_is_better": greater_is_better, "step": kept, "checkpoint": checkpoint}
    found |= {"value": after.get(kept, {}).get(key), "evaluations": len(after), "agree": True}
    if after:
        lowest = min(after, key=lambda step: (after[step]["eval_loss"], step))
        found["lowest_loss"] = {"step": lowest, "eval_loss": after[lowest]["eval_loss"], "value": after[lowest].get(key)}
        found["agree"] = lowest == kept
    found["said"] = _kept(found, evaluations(history).get(0, {}).get(key), why_last) + ("" if found["agree"] else _elsewhere(found))
    return found


def _kept(found: dict[str, Any], before: float | None, why_last: str) -> str:
    step, name, value = found["step"], found["metric"], found["value"]
    if found["checkpoint"] is None:
        return f"kept: the last step, {step:,}{f'; {why_last}' if why_last else ''}"
    said = f"kept: step {step:,}, the best {name} of {found['evaluations']} evaluations ({shown(value)})"
    if before is not None and not (value > before if found["greater_is_better"] else value < before):
        said += f"; no better than before training ({shown(before)})"
    return said


def _elsewhere(found: dict[str, Any]) -> str:
    lowest, name = found["lowest_loss"], found["metric"]
    there = "" if name == "loss" or lowest["value"] is None else f", where {name} is {shown(lowest['value'])}"
    return f"; the lowest held-out loss, {shown(lowest['eval_loss'])}, was at step {lowest['step']:,}{there}"


def shown(value: float) -> str:
    """A score or a loss with as many digits as tell something."""
    return f"{value:.3f}" if value == 0 or abs(value) >= 1e-2 else f"{value:.1e}"
