"""What was logged while a run trained, as lines over its steps."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from ..scores import MANNER
from .reading import Told

TIMED = re.compile(r"_(runtime|per_second|time)$")


class Line(NamedTuple):
    """A name, and `(step, value)` in the order of the steps; values may be NaN or infinite."""

    name: str
    points: list[tuple[int, float]]


def losses(told: Told) -> list[Line]:
    """The loss of the training steps and of the held-out conversations, nats per supervised token."""
    return _with_points(Line("train", logged(told, "loss")), Line("held-out", judged(told, "eval_loss")))


def scores(told: Told) -> list[Line]:
    """The primary score and the other scores over the evaluations; not the parts of one (`exact_3_terms`), nor the manner."""
    names = [name for name in _names(told) if name not in MANNER and name != "eval_loss"]
    whole = [name for name in names if not any(name.startswith(f"{of}_") for of in names)]
    ranked = sorted(whole, key=lambda name: name != told.primary)
    return _with_points(*(Line(name, judged(told, name)) for name in ranked))


def manner(told: Told) -> list[Line]:
    """Those of the manner that are shares: `repeats`, `echoes_prompt`, `distinct`."""
    return _with_points(*(Line(name, judged(told, name)) for name in _names(told) if name in MANNER and name != "length"))


def retained(told: Told) -> list[Line]:
    """The loss on the data that the model is to keep, nats per token."""
    points = dict(logged(told, "eval_retain_loss"))
    steps = {"before": 0, "after": told.kept_step, "end": told.last_step}
    retain = told.metrics.get("retain") or {}
    points |= {step: retain[stage]["loss"] for stage, step in steps.items() if retain.get(stage)}
    return _with_points(Line("retained data", sorted(points.items())))


def judged(told: Told, name: str) -> list[tuple[int, float]]:
    """A held-out score over the evaluations, with what the run says of itself before training, as it was kept, and at the end."""
    points = dict(logged(told, name if name.startswith("eval_") else f"eval_{name}"))
    points |= {step: found[name] for step, found in told.scores().values() if _is_number(found.get(name))}
    return sorted(points.items())


def logged(told: Told, key: str) -> list[tuple[int, float]]:
    """What was logged under a key, by step."""
    return [(entry["step"], entry[key]) for entry in told.history if "step" in entry and _is_number(entry.get(key))]


def _names(told: Told) -> list[str]:
    """Of all scores; those of a run that has not finished are read off its evaluations."""
    if found := told.metrics.get("after"):
        return list(found)
    keys = dict.fromkeys(key for entry in told.history for key in entry if key.startswith("eval_") and not TIMED.search(key))
    return [key.removeprefix("eval_") for key in keys if not key.startswith(("eval_retain_", "eval_loss"))]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _with_points(*lines: Line) -> list[Line]:
    return [line for line in lines if line.points]
