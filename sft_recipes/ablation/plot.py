"""The picture of an ablation: the held-out score over the steps, and its sub-scores after training. matplotlib, no window."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..plotting import looks, styled
from .comparison import Comparison, over_steps, parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 25  # markers on a line, at most
WIDE = 84  # letters that stand side by side over the whole width


def draw(found: Comparison, folder: Path) -> None:
    """Write `ablation.svg` and `ablation.png` (1600 pixels wide, for 800), the same bytes for the same numbers.

    Args:
        found: from `compare`.
        folder: exists.
    """
    with styled():
        figure = picture(found)
        figure.savefig(folder / "ablation.svg", metadata={"Date": None})
        figure.savefig(folder / "ablation.png", dpi=200)


def picture(found: Comparison) -> Figure:
    """The figure itself, to be made and saved within `plotting.styled`; arguments as for `draw`."""
    from matplotlib.figure import Figure

    divided = bool(parts(found))
    figure = Figure(figsize=(8, 3.6), dpi=100, layout="constrained")
    figure.get_layout_engine().set(wspace=0.08)  # type: ignore[union-attr, call-arg]
    panels: list[Axes] = list(figure.subplots(1, 1 + divided, squeeze=False, sharey=True)[0])
    lines = _over_steps(panels[0], found)
    if divided:
        panels[0].set_title("while training")
        _after(panels[1], found)
    _from_zero(panels[0], found)
    columns = max(1, WIDE // (max(map(len, found["arms"])) + 8))
    figure.legend(lines, list(found["arms"]), loc="outside upper left", ncols=columns, frameon=False, borderaxespad=0.2)
    return figure


def _over_steps(panel: Axes, found: Comparison) -> list[Any]:
    """A line for each arm; gives their handles for the legend."""
    from matplotlib.ticker import MaxNLocator

    panel.set(xlabel="optimiser steps", ylabel=f"{found['primary'].removeprefix('eval_').replace('_', ' ')} on held-out data")
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    lines = []
    for i, arm in enumerate(found["arms"].values()):
        every = -(-len(arm["steps"]) // SHOWN) or 1
        # a score of 0 or 1 lies on the frame: over it, and not cut there
        look: dict[str, Any] = dict(linewidth=2, markersize=5, markevery=every, clip_on=False, zorder=3)
        lines += panel.plot(arm["steps"], arm["scores"], **looks(i), **look)
    return lines


def _after(panel: Axes, found: Comparison) -> None:
    """A group of bars for each sub-score, one bar for each arm."""
    names, values = zip(*parts(found), strict=True)
    width = 0.8 / len(found["arms"])
    for i, bars in enumerate(zip(*values, strict=True)):
        places = [group - 0.4 + (i + 0.5) * width for group in range(len(names))]
        heights = [float("nan") if value is None else value for value in bars]
        colour = looks(i)["color"]
        panel.bar(places, heights, width * 0.9, color=colour, edgecolor=colour, zorder=3)  # with an edge: a zero is seen, a gap is not
    ticks, shared = _without_shared(names)
    panel.set(title="after training", xlabel=shared)
    slanted = sum(map(len, ticks)) > WIDE // 2 - len(ticks)  # side by side they would run into each other
    panel.set_xticks(range(len(names)), ticks, rotation=30 if slanted else 0, ha="right" if slanted else "center")
    panel.margins(x=0.02)


def _without_shared(names: tuple[str, ...]) -> tuple[list[str], str]:
    """`2 terms`, `3 terms` as `2`, `3` and, for the axis, `terms`; names that end otherwise stay whole."""
    words = [name.rpartition(" ") for name in names]
    ends = {last for *_, last in words}
    if len(names) > 1 and len(ends) == 1 and all(first for first, *_ in words):
        return [first for first, *_ in words], ends.pop()
    return list(names), ""


def _from_zero(panel: Axes, found: Comparison) -> None:
    """Scores begin at zero, and shares of one that get far end there; a loss keeps its own range."""
    drawn = [score for _, scores in [*over_steps(found, 10**9), *parts(found)] for score in scores]
    values = [score for score in drawn if score is not None and isfinite(score)]
    if found["primary"] != "eval_loss" and values and min(values) >= 0:
        top = max(values) or 1.0
        panel.set_ylim(0, 1 if 0.5 < top <= 1 else 1.08 * top)
