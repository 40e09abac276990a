"""Figures with the spread of their runs, what they are held to, and the reasons of those that were not measured."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NO_TIME = "no time left"


@dataclass
class Figure:
    """One line of the table.

    Attributes:
        section, name: what it is.
        unit: of its values.
        values: of each run; none where it was not measured.
        least, most: what the median is held to.
        bar: that in words, where another figure sets it.
        note: what has to be known to read it.
        missed: why it was not measured.
    """

    section: str
    name: str
    unit: str = ""
    values: list[float] = field(default_factory=list)
    least: float | None = None
    most: float | None = None
    bar: str = ""
    note: str = ""
    missed: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def holds(self) -> bool | None:
        """Whether the bar is met; `None` where there is none, or nothing was measured."""
        if not self.values or self.least is self.most is None:
            return None
        low, high = -float("inf") if self.least is None else self.least, float("inf") if self.most is None else self.most
        return low <= self.median <= high

    def cells(self) -> tuple[str, str, str, str]:
        """Name, what was measured, what it is held to, whether it holds; as text."""
        if not self.values:
            return f"{self.section}: {self.name}", f"not run: {self.missed}", self._bar(), ""
        spread = "" if len(self.values) == 1 else f" ({_short(min(self.values))} to {_short(max(self.values))}, {len(self.values)} runs)"
        note = f"; {self.note}" if self.note else ""
        held = {None: "", True: "yes", False: "NO"}[self.holds]
        return f"{self.section}: {self.name}", f"{_short(self.median)}{spread} {self.unit}".rstrip() + note, self._bar(), held

    def _bar(self) -> str:
        bounds = [f"{word} {_short(bound)}" for word, bound in (("at least", self.least), ("at most", self.most)) if bound is not None]
        return self.bar or ", ".join(bounds)

    def plain(self) -> dict[str, Any]:
        """Plain data for the results file."""
        found = {"section": self.section, "name": self.name, "unit": self.unit, "note": self.note}
        if not self.values:
            return {**found, "not_run": self.missed}
        spread = {"min": min(self.values), "median": self.median, "max": max(self.values)}
        return {**found, "values": self.values, **spread, "at_least": self.least, "at_most": self.most, "holds": self.holds}


class Table:
    """Every figure that a run is to give, in order, from the start; those that nobody measures say why."""

    def __init__(self, figures: Iterable[Figure]):
        self.figures = {(figure.section, figure.name): figure for figure in figures}

    def give(self, section: str, name: str, values: Sequence[float] | float, note: str = "", most: float | None = None) -> None:
        """What was measured.

        Args:
            section, name: of a declared figure.
            values: of each run.
            note: takes the place of the declared one.
            most: the bound, where it was measured too.

        Raises:
            KeyError: nobody declared it.
        """
        figure = self.figures[section, name]
        figure.values = [float(value) for value in values] if isinstance(values, Sequence) else [float(values)]
        figure.note = note or figure.note
        figure.most = figure.most if most is None else most

    def miss(self, reason: str, section: str, part: str = "") -> None:
        """The figures of a section whose name holds `part`, and that have neither a value nor a reason, get this one."""
        for (of, name), figure in self.figures.items():
            if of == section and part in name and not figure.values:
                figure.missed = figure.missed or reason

    def lines(self) -> list[str]:
        """For a terminal."""
        rows = [figure.cells() for figure in self.figures.values()]
        widths = [max(len(row[i]) for row in rows) for i in (0, 1, 2)]
        return ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows]

    def markdown(self, on: dict[str, Any]) -> str:
        """What it was measured on, and the table."""
        told = "\n".join(f"- {name}: {value}" for name, value in on.items())
        rows = "\n".join("| " + " | ".join(figure.cells()) + " |" for figure in self.figures.values())
        return f"# {on['device']}\n\n{told}\n\n| what | measured | bar | holds |\n| --- | --- | --- | --- |\n{rows}\n"

    def write(self, on: dict[str, Any], folder: Path, name: str) -> None:
        """The results file, and the same to read."""
        folder.mkdir(parents=True, exist_ok=True)
        found = {**on, "figures": [figure.plain() for figure in self.figures.values()]}
        (folder / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        (folder / f"{name}.md").write_text(self.markdown(on), encoding="utf-8")


def _short(value: float) -> str:
    if value == 0 or 1e-2 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:.1e}"
