"""Training rows as one self-contained page: no network, no script, and nothing in the data can act on it.

The three ways of masking and the rows are switched by radio buttons and CSS; the page's own policy forbids scripts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..recipe import RecipeError
from .view import MODES, Reader, Token, visible

HERE = Path(__file__).parent
MOST_ROWS, MOST_TOKENS = 20, 20_000  # a page of some 5 MB, which a phone still opens


def write_page(reader: Reader, rows: Sequence[dict[str, Any]], number: int, file: Path) -> int:
    """Write row `number` and those after it, as many as make a page that opens quickly.

    Args:
        reader: of the rows' tokenizer.
        rows: `{"input_ids", "labels", "source"}`, where it may have `loss_weights`.
        number: which row comes first.
        file: replaced if it exists.

    Returns:
        the number of the last row written.

    Raises:
        RecipeError: the file cannot be written.
    """
    shown = list(_from(rows, number))
    last = number + len(shown) - 1
    views = [_view(reader, row, n) for n, row in enumerate(shown, number)]
    template = environment(HERE).get_template("page.html.jinja")
    page = template.render(rows=views, first=number, last=last, total=len(rows), modes=MODES, visible=visible, about=_about)
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"--html {file}: {error.strerror}") from error
    return last


def environment(folder: Path) -> Environment:
    """Templates in `folder`, and `look.css`, the look that our pages share; whatever they are given is escaped."""
    found = FileSystemLoader([folder, HERE])
    return Environment(loader=found, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _from(rows: Sequence[dict[str, Any]], number: int) -> Iterator[dict[str, Any]]:
    written = 0
    for row in rows[number : number + MOST_ROWS]:
        written += len(row["input_ids"])
        if written > MOST_TOKENS and row is not rows[number]:
            return
        yield row


def _view(reader: Reader, row: dict[str, Any], number: int) -> dict[str, Any]:
    """What the template prints of one row."""
    tokens = reader.tokens(row)
    return {
        "number": number,
        "source": row["source"],
        "tokens": tokens,
        "text": reader.text(tokens),
        "shifted": list(zip_longest(tokens, tokens[1:])),
        "counts": {mode: sum(mode in token.modes for token in tokens) for mode in MODES},
        "weighted": any(token.weight != 1 for token in tokens),
    }


def _about(token: Token) -> str:
    """The line that a token's tooltip shows."""
    predicted = f"predicted from position {token.position - 1}" if token.position else "predicted from nothing"
    weight = "" if token.weight == 1 else f", weight {token.weight:g}"
    within = f", a piece of {visible(token.within)}" if token.within else ""
    return f"position {token.position}, id {token.id}, label {token.label}, {predicted}{weight}{within}"
