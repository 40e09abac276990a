"""Example training rows as stretches of text, those that carry loss marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby, islice
from typing import Any, NamedTuple

from ..show.view import visible

QUIET, LOUD = 300, 600  # tokens of a stretch that are shown, without loss and with it
FEW = 50  # are not worth leaving out
MOST = 1500  # tokens of a row


class Piece(NamedTuple):
    """A token, or with `left_out` so many tokens that are not shown."""

    text: str
    id: int = -1
    learned: bool = False
    weight: float = 1.0
    left_out: int = 0


class Example(NamedTuple):
    """A row: its number, where it comes from, its tokens, and how many there are and carry loss."""

    number: int
    source: str
    pieces: list[Piece]
    total: int
    learned: int


def examples(rows: list[dict[str, Any]]) -> list[Example]:
    """What the page shows of `rows.jsonl`: each change from context to what is learned, the middle of long stretches left out."""
    return [_example(row) for row in rows]


def _example(row: Mapping[str, Any]) -> Example:
    tokens = row["tokens"]
    learned = sum(bool(token["learned"]) for token in tokens)
    return Example(row.get("number", 0), str(row["source"]), list(_limited(_pieces(tokens))), len(tokens), learned)


def _pieces(tokens: list[dict[str, Any]]) -> Iterator[Piece]:
    for learned, stretch in groupby(tokens, key=lambda token: bool(token["learned"])):
        whole, most = list(stretch), LOUD if learned else QUIET
        left_out = len(whole) - most
        if left_out <= FEW:
            yield from map(_piece, whole)
            continue
        yield from map(_piece, whole[: most // 2])
        yield Piece("", learned=learned, left_out=left_out)
        yield from map(_piece, whole[most // 2 + left_out :])


def _limited(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The first of a row's pieces, and the count of the tokens after them."""
    yield from islice(pieces, MOST)
    if rest := sum(piece.left_out or 1 for piece in pieces):
        yield Piece("", left_out=rest)


def _piece(token: Mapping[str, Any]) -> Piece:
    return Piece(visible(str(token["text"]), True), token.get("id", -1), bool(token["learned"]), float(token.get("weight", 1.0)))
