"""What a run folder holds, as far as the run has got, whichever version wrote it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..run import Run


@dataclass(frozen=True)
class Told:
    """The files of a run folder; what is not there yet is empty.

    Attributes:
        run: the folder.
        recipe: `recipe.json`.
        metrics: `metrics.json`; empty until the trained model has been judged.
        history: `history.jsonl`; of a run that has not finished, what its newest checkpoint remembers.
        samples: `samples.jsonl`.
        rows: `rows.jsonl`.
        ablation: `ablation.json`, of the first arm of one.
    """

    run: Run
    recipe: dict[str, Any]
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    ablation: dict[str, Any] | None

    @property
    def primary(self) -> str:
        """The primary score, as the metrics or the recipe name it."""
        return str(self.metrics.get("primary") or self.recipe.get("resolved", {}).get("primary") or "eval_loss")

    @property
    def last_step(self) -> int:
        """The last optimiser step that was logged; 0 before the first."""
        return max((entry["step"] for entry in self.history if "step" in entry), default=0)

    @property
    def kept_step(self) -> int:
        """The step whose weights were kept: the last, unless the metrics say otherwise."""
        return int((self.metrics.get("best") or {}).get("step", self.last_step))

    def scores(self) -> dict[str, tuple[int, dict[str, float]]]:
        """The held-out scores of each stage that was judged, with its step: `before`, `after` (of what was kept), `end`."""
        steps = {"before": 0, "after": self.kept_step, "end": self.last_step}
        return {stage: (step, self.metrics[stage]) for stage, step in steps.items() if self.metrics.get(stage)}


def read(run: Run) -> Told:
    """Read a run folder.

    Raises:
        RecipeError: there is no run.
    """
    return Told(
        run=run,
        recipe=run.read("recipe.json"),
        metrics=run.read("metrics.json") if (run.folder / "metrics.json").is_file() else {},
        history=_history(run),
        samples=_lines(run, "samples.jsonl"),
        rows=_lines(run, "rows.jsonl"),
        ablation=run.read("ablation.json") if (run.folder / "ablation.json").is_file() else None,
    )


def _lines(run: Run, name: str) -> list[dict[str, Any]]:
    return run.read_lines(name) if (run.folder / name).is_file() else []


def _history(run: Run) -> list[dict[str, Any]]:
    if (run.folder / "history.jsonl").is_file():
        return run.read_lines("history.jsonl")
    states = sorted(run.checkpoints.glob("checkpoint-*/trainer_state.json"), key=_step)
    return json.loads(states[-1].read_text(encoding="utf-8"))["log_history"] if states else []


def _step(state: Path) -> int:
    last = state.parent.name.rpartition("-")[2]
    return int(last) if last.isdecimal() else -1
