"""The picture of the results: ours to TRL's for each case. matplotlib, no window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sft_recipes.plotting import COLOURS, styled

from .table import Table


def draw(table: Table, on: dict[str, Any], file: Path) -> bool:
    """Write an SVG with a bar for each case that was measured, from the slowest round to the fastest; says whether there is any.

    Args:
        table: with figures `ours to TRL`.
        on: what it was measured on.
        file: its folder exists.
    """
    found = [figure for figure in table.figures.values() if figure.name.endswith("ours to TRL") and figure.values]
    if not found:
        return False
    from matplotlib.figure import Figure

    with styled():
        figure = Figure(figsize=(9, 1.1 + 0.42 * len(found)), dpi=100, layout="constrained")
        panel = figure.subplots()
        places, ratios = list(range(len(found))), [each.median for each in found]
        ends = [[each.median - min(each.values) for each in found], [max(each.values) - each.median for each in found]]
        panel.barh(places, ratios, 0.55, xerr=ends, color=COLOURS[0], zorder=3, error_kw={"zorder": 4, "capsize": 3})
        for at, each in zip(places, found, strict=True):
            panel.annotate(f"{each.median:.2f}", (max(each.values), at), (6, 0), textcoords="offset points", va="center")
        panel.axvline(1, color=COLOURS[1], linewidth=2, zorder=4)
        low, high = [at - 0.4 for at in places], [at + 0.4 for at in places]
        panel.vlines([each.least or 1.0 for each in found], low, high, color="#111111", linestyle=":", zorder=5)
        panel.set_yticks(places, [each.name.rpartition(":")[0] for each in found])
        panel.invert_yaxis()
        panel.grid(False)
        panel.set_xlim(0, 1.15 * max(max(each.values) for each in found))
        title = f"{on['device']}\nsupervised tokens per second, in multiples of TRL's; dotted: the bars"
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        figure.savefig(file, metadata={"Date": None})
    return True
