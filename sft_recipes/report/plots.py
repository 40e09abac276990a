"""Lines over steps as inline SVG, in the colours of the page, light or dark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO
from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from ..plotting import AXIS, COLOURS, FAINT, INK, MARKERS, looks, styled
from .curves import Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZES = {True: (6.4, 3.0), False: (4.2, 2.5)}  # inches; a page shows wide ones two in a row, the others three
MOST = 400  # points of a line
SHOWN = 25  # markers on a line, at most
SIGNS = dict(zip(MARKERS, "●■▲◆▼⬟⬢✖", strict=True))  # what a legend in text has for a marker
BY_THE_PAGE = {INK: "var(--ink)", AXIS: "var(--soft)", FAINT: "var(--line)", **{c: f"var(--c{i})" for i, c in enumerate(COLOURS)}}


class Plot(NamedTuple):
    """A plot for the page.

    Attributes:
        title: what it shows, with its unit.
        keys: of its legend: name, sign, and number of the colour.
        svg: safe to be written as it is.
        wide: it takes half of the page, not a third.
        remark: what it leaves out, or nothing.
        kept: the step it marks, if any.
    """

    title: str
    keys: list[tuple[str, str, int]]
    svg: Markup
    wide: bool = False
    remark: str = ""
    kept: int | None = None


def over_steps(title: str, lines: Sequence[Line], wide: bool = False, kept: int | None = None, share: bool = False) -> list[Plot]:
    """Draw lines.

    Args:
        title: what they show, with the unit.
        lines: drawn in this order, each in its own colour.
        wide: for half of the page instead of a third.
        kept: a step to mark.
        share: values from 0 to 1; others may be drawn over a logarithmic axis, where they lie that far apart.

    Returns:
        one plot; none where there is nothing to draw.
    """
    from matplotlib.figure import Figure

    finite = [Line(line.name, [(step, value) for step, value in line.points if isfinite(value)]) for line in lines]
    values = [value for line in finite for _, value in line.points]
    if not values:
        return []
    lost = sum(len(line.points) for line in lines) - len(values)
    with styled():
        figure = Figure(figsize=SIZES[wide], layout="constrained")
        panel = figure.subplots()
        panel.tick_params(labelsize=11 if wide else 9)
        panel.set_xlabel("step", fontsize=11 if wide else 9, loc="right", labelpad=0)
        for i, line in enumerate(finite):
            _draw(panel, i, line.points)
        _scale(panel, values, share)
        if kept is not None:
            panel.axvline(kept, color=AXIS, linestyle=(0, (4, 3)), linewidth=1.2, zorder=2)
        svg = inline(figure, title)
    keys = [(line.name, _sign(i, line.points), i % len(COLOURS)) for i, line in enumerate(finite)]
    return [Plot(title, keys, svg, wide, f"{lost:,} values are not finite, and not drawn" if lost else "", kept)]


def _draw(panel: Axes, index: int, points: Sequence[tuple[int, float]]) -> None:
    shown = thinned(points)
    marked = dict(markersize=4.5, markevery=-(-len(shown) // SHOWN)) if _is_marked(points) else dict(marker="", linewidth=1.3)
    look = {"linewidth": 1.8, **looks(index), **marked}
    panel.plot(*zip(*shown, strict=True), clip_on=False, zorder=3, **look) if shown else None


def _is_marked(points: Sequence[tuple[int, float]]) -> bool:
    """A few evaluations are points with a line between them; what is logged all the time is a line."""
    return len(points) <= SHOWN


def _sign(index: int, points: Sequence[tuple[int, float]]) -> str:
    return SIGNS[MARKERS[index % len(MARKERS)]] if _is_marked(points) else "━"


def thinned(points: Sequence[tuple[int, float]], most: int = MOST) -> list[tuple[int, float]]:
    """So many points at most that a line over them looks the same: of neighbours the lowest and the highest, in order."""
    size = -(-len(points) * 2 // most)
    if len(points) <= most:
        return list(points)
    found: list[tuple[int, float]] = []
    for start in range(0, len(points), size):
        some = points[start : start + size]
        ends = {min(some, key=lambda point: point[1]), max(some, key=lambda point: point[1])}
        found += sorted(ends)
    return found


def _scale(panel: Axes, values: Sequence[float], share: bool) -> None:
    """Steps as whole numbers; shares of one over all of it; what spans decades over a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    if share and min(values) >= 0 and max(values) <= 1:
        panel.set_ylim(0, 1 if max(values) > 0.5 else 1.08 * max(values) or 1)
    elif min(values) > 0 and max(values) / min(values) > 20:
        far = max(values) / min(values) > 1e3
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0,) if far else (1.0, 2.0, 5.0)))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def inline(figure: Figure, title: str) -> Markup:
    """A figure as an `<svg>` element whose colours are the page's, to be called within `plotting.styled`."""
    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    named = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in named else "", svg)  # each page has many figures
    svg = re.sub(r"(?<=: )#[0-9a-f]{6}\b", lambda found: _OF_THE_PAGE.get(found[0].lower(), found[0]), svg, flags=re.IGNORECASE)
    head = Markup('<svg role="img" aria-label="{}" viewBox="{}">').format(title, re.search(r'viewBox="([^"]*)"', svg)[1])  # type: ignore[index]
    return head + Markup(svg[svg.index(">") + 1 :])


_OF_THE_PAGE = {colour.lower(): ours for colour, ours in BY_THE_PAGE.items()}
