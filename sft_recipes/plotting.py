"""What our plots share: colours, line styles, type. matplotlib, no window."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

# Okabe and Ito's colours, told apart with every kind of colour vision; the markers tell the lines apart without any.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dvphx"
INK, FAINT, AXIS = "#333333", "#e4e4e4", "#999999"
STYLE: dict[Any, Any] = {
    "font.sans-serif": ["DejaVu Sans", "Verdana"],  # the first comes with matplotlib; a browser without it has the other, as wide
    "font.size": 11,
    "text.color": INK,
    "text.parse_math": False,  # a name may hold a dollar sign
    "axes.labelcolor": INK,
    "axes.edgecolor": AXIS,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "xtick.major.pad": 6,
    "ytick.major.size": 0,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "sft-recipes",  # the same numbers give the same file
}


def styled() -> AbstractContextManager[None]:
    """Figures made and saved in here look as ours do, whatever the person's matplotlibrc says."""
    from matplotlib import style

    return style.context(["default", STYLE])


def looks(index: int) -> dict[str, Any]:
    """Colour and marker of a line, by its number from 0."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
