"""The picture of the rows benchmark: each workload's ratio to stock TRL. matplotlib, no window."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sft_recipes.plotting import COLOURS, styled

from .rows import Result


def draw(results: Sequence[Result], file: Path) -> None:
    """Write an SVG, the same bytes for the same numbers: a bar for the ratio, a dotted mark at the limit, a line for TRL.

    Args:
        results: in the order of the bars.
        file: its folder exists.
    """
    from matplotlib.figure import Figure

    with styled():
        figure = Figure(figsize=(8, 3.2), dpi=100, layout="constrained")
        panel = figure.subplots()
        places = range(len(results))
        ratios, limits = [each.ratio for each in results], [each.limit for each in results]
        panel.bar(places, ratios, 0.5, color=COLOURS[0], zorder=3)
        for at, ratio, limit in zip(places, ratios, limits, strict=True):
            panel.annotate(f"{ratio:.1f} times", (at, max(ratio, limit)), (0, 5), textcoords="offset points", ha="center")
        panel.axhline(1, color=COLOURS[1], linewidth=2, zorder=4)
        panel.annotate("TRL", (1, 1), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points", color=COLOURS[1], va="center")
        panel.hlines(limits, [at - 0.34 for at in places], [at + 0.34 for at in places], color="#999999", linewidth=1.5, linestyle=":")
        panel.set_xticks(places, [f"{each.name}\n(TRL {each.layout})" for each in results])
        panel.set_ylim(0, 1.15 * max(ratios + limits))
        panel.set_title("supervised tokens per second, in multiples of TRL's; dotted: tokens without sharing to tokens with it")
        figure.savefig(file, metadata={"Date": None})
