"""Numbers, names and long texts as the page prints them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..show.view import visible


def number(value: Any, name: str = "") -> str:
    """A score or a count: three decimals, `length` one, whole numbers grouped, what is not there a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if name.removeprefix("eval_") == "length":
        return f"{value:.1f}"
    return f"{value:.3f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"


def cut(text: str, most: int) -> str:
    """A text with its control characters visible; of a long one its beginning and its end, with the count of what is between."""
    left_out = len(text) - most
    if left_out <= most // 20:  # to say so would be as long
        return visible(text, True)
    head = most * 2 // 3
    return f"{visible(text[:head], True)} … {left_out:,} characters left out … {visible(text[head + left_out :], True)}"


def plain(value: Any) -> Any:
    """For the templates: a text without control characters, whatever it comes from; all else as it is."""
    if not isinstance(value, str) or hasattr(value, "__html__") or value.isprintable():
        return value
    return "".join(c if c.isprintable() or c in "\n\t⇥\u200c\u200d" else ascii(c)[1:-1] for c in value)


def place(path: Any) -> str:
    """A model or a file by its name; of an absolute path the end, which is what it means on another machine."""
    text = str(path)
    parts = Path(text).parts
    return "/".join(parts[-3:]) if text.startswith("/") and len(parts) > 4 else text


def sources(data: Any) -> str:
    """Where data come from, as `recipe.json` has it: a path, a source, a function, a number of rows, or several."""
    if isinstance(data, Mapping):
        return ":".join(str(part) for part in (place(data.get("path", "")), data.get("name"), data.get("split")) if part)
    if isinstance(data, list):
        return ", ".join(map(sources, data))
    return f"{data:,} split off by content" if isinstance(data, int) else place(data)
