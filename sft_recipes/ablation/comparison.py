"""The numbers of an ablation, read from the run folders of its arms: plain data, as `ablation.json` holds them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from ..recipe import RecipeError
from ..run import Run

ROWS = 9  # of the table over steps


class Trained(TypedDict):
    """One arm: its held-out primary score (`scores`) at each of `steps`, and every held-out score before and after."""

    steps: list[int]
    scores: list[float]
    before: dict[str, float]
    after: dict[str, float]


class Comparison(TypedDict):
    """The first arm's primary score, and every arm by its name."""

    primary: str
    arms: dict[str, Trained]


def compare(folders: Mapping[str, Path]) -> Comparison:
    """Read the arms' scores.

    Args:
        folders: each arm's name and finished run folder, the first being the recipe itself.

    Raises:
        RecipeError: a run is missing or has not finished.
    """
    metrics = {name: Run(folder).read("metrics.json") for name, folder in folders.items()}
    primary = next(iter(metrics.values()))["primary"]
    arms: dict[str, Trained] = {}
    for name, folder in folders.items():
        before, after = metrics[name]["before"], metrics[name]["after"]
        kept = metrics[name].get("best", {}).get("step")
        points = _points(_history(folder), primary, before, after, kept)
        arms[name] = Trained(steps=list(points), scores=list(points.values()), before=before, after=after)
    return Comparison(primary=primary, arms=arms)


def _history(folder: Path) -> list[dict]:
    """What was logged while training, one entry a line."""
    file = folder / "history.jsonl"
    if not file.is_file():
        raise RecipeError(f"{folder} holds no {file.name}: the run has not finished")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _points(history: list[dict], primary: str, before: dict[str, float], after: dict[str, float], kept: int | None) -> dict[int, float]:
    """Steps and scores in order; step 0 and the one that was kept, else the last, have what the run says of itself before and after."""
    logged = primary if primary.startswith("eval_") else f"eval_{primary}"
    points = {entry["step"]: entry[logged] for entry in history if logged in entry}
    last = max((entry["step"] for entry in history if "step" in entry), default=0)
    ends = {0: before.get(primary), last if kept is None else kept: after.get(primary)}
    points |= {step: score for step, score in ends.items() if score is not None}
    return dict(sorted(points.items()))


def over_steps(found: Comparison, rows: int = ROWS) -> list[tuple[int, list[float | None]]]:
    """The primary score of each arm at, at most, `rows` steps, evenly chosen with the first and the last among them."""
    points = [dict(zip(arm["steps"], arm["scores"], strict=True)) for arm in found["arms"].values()]
    steps = sorted({step for arm in points for step in arm})
    shown = steps if len(steps) <= rows else [steps[round(i * (len(steps) - 1) / (rows - 1))] for i in range(rows)]
    return [(step, [arm.get(step) for arm in points]) for step in shown]


def parts(found: Comparison) -> list[tuple[str, list[float | None]]]:
    """The sub-scores of the primary score after training: `exact_2_terms` of `exact` as `2 terms`, and one value per arm."""
    start = f"{found['primary']}_"
    after = [arm["after"] for arm in found["arms"].values()]
    names = sorted({name for arm in after for name in arm if name.startswith(start)}, key=_natural)
    return [(name.removeprefix(start).replace("_", " "), [arm.get(name) for arm in after]) for name in names]


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts 2 before 10, and numbers before words."""
    return [(int(piece), "") if piece.isdecimal() else (10**9, piece) for piece in re.findall(r"\d+|\D+", name)]
