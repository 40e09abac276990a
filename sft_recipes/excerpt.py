"""What a model was asked and what it said, short enough for a line of a terminal, and harmless there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any

from rich.cells import cell_len

from .scores import MANNER
from .show.view import visible

CUT = "…"


def excerpt(text: str, columns: int, last: bool = False) -> str:
    """As much of a text as fits a line, with line breaks and control characters made visible.

    Args:
        columns: of the terminal; a Chinese character takes two.
        last: keep the end of the text instead of its beginning.
    """
    part = text.strip()[-2 * columns :] if last else text.strip()[: 2 * columns]
    shown = visible(part, within_text=True).replace("\n", " ").replace("\t", " ")
    if part == text.strip() and cell_len(shown) <= columns:
        return shown
    return CUT + _fitting(reversed(shown), columns - 1)[::-1] if last else _fitting(shown, columns - 1) + CUT


def _fitting(characters: Iterable[str], columns: int) -> str:
    kept = ""
    for character in characters:
        columns -= cell_len(character)
        if columns < 0:
            break
        kept += character
    return kept


def contrasted(reply: str, reference: str, columns: int) -> tuple[str, str]:
    """A reply and what it should have been, each on a line, from a little before they part: two long texts may begin alike."""
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(reply, reference, strict=False)))
    hidden = alike > columns * 3 // 4 and max(cell_len(reply), cell_len(reference)) > columns
    start = alike - columns // 4 if hidden else 0
    first, second = (CUT * bool(start) + text[start:] for text in (reply, reference))
    return excerpt(first, columns), excerpt(second, columns)


def spoken(message: Mapping[str, Any]) -> str:
    """A message as text: its content, then each call as `{"name", "arguments"}`."""
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    calls = [json.dumps({"name": f.get("name"), "arguments": f.get("arguments")}, ensure_ascii=False) for f in functions]
    content = message.get("content")
    return "\n".join([*([str(content)] if content else []), *calls])


def right(scores: Mapping[str, float], primary: str) -> bool | None:
    """Whether a reply is right by the primary score; `None` where that tells neither: a manner, or a loss over all replies."""
    return None if primary in MANNER or primary not in scores else scores[primary] == 1.0
