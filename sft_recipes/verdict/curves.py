"""What the loss curves say: how far they fell, and where the held-out one turned while the training one went on falling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from .best import evaluations, shown

TURN = 0.02  # the held-out loss has turned when it ends so much above its lowest, as a share; less is noise of few conversations


def curves(history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Both curves in words, as `metrics.json` has them under `curves`.

    Args:
        history: transformers' `log_history`.

    Returns:
        `overfitting`: where the held-out loss turned while the training loss went on falling, or `None`; and `said`.
    """
    train, held_out = trained(history), {step: entry["eval_loss"] for step, entry in evaluations(history).items()}
    turned = overfitting(train, held_out)
    said = [f"{name} loss {_ends(curve)}" for name, curve in (("training", train), ("held-out", held_out)) if len(curve) > 1]
    return {"overfitting": turned, "said": "; ".join([*said, *([turned["said"]] if turned else [])])}


def trained(history: Sequence[dict[str, Any]]) -> dict[int, float]:
    """The training loss, in nats per supervised token, by the step at which it was logged: the mean since the log before."""
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry and "step" in entry}


def overfitting(train: Mapping[int, float], held_out: Mapping[int, float]) -> dict[str, Any] | None:
    """Where a model began to overfit, or `None`.

    It did where the held-out loss is lowest before the last evaluation, ends 2% above that, and the training loss, between the lowest
    evaluation and the last, is lower than it was up to the lowest since the evaluation before it.

    Args:
        train, held_out: losses by step, in nats; the held-out ones in order.
    """
    steps = list(held_out)
    if len(steps) < 3:
        return None
    lowest, last = min(steps, key=lambda step: (held_out[step], step)), steps[-1]
    before = [step for step in steps if step < lowest]
    if not held_out[last] > held_out[lowest] * (1 + TURN) or not before:
        return None
    then, since = _mean(train, before[-1], lowest), _mean(train, lowest, last)
    if then is None or since is None or not since < then:
        return None
    rise = f"held-out loss turned at step {lowest:,} ({shown(held_out[lowest])}) and was {shown(held_out[last])} at step {last:,}"
    said = f"{rise}, while the training loss fell on from {shown(then)} to {shown(since)}: it overfits from there"
    return {"step": lowest, "eval_loss": held_out[lowest], "last_step": last, "last_eval_loss": held_out[last], "said": said}


def _mean(curve: Mapping[int, float], after: int, until: int) -> float | None:
    values = [value for step, value in curve.items() if after < step <= until]
    return fmean(values) if values else None


def _ends(curve: Mapping[int, float]) -> str:
    values = list(curve.values())
    return f"{shown(values[0])} to {shown(values[-1])}"
