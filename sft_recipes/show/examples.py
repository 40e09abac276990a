"""A few training rows as plain data, to keep in the run folder: what a run was trained on can be read there without its data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .view import Reader

EXAMPLES = 3


def examples(reader: Reader, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The lines of `rows.jsonl`: at most three rows, evenly chosen, token by token.

    Args:
        reader: of the rows' tokenizer.
        rows: `{"input_ids", "labels", "source"}`, where it may have `loss_weights`.
    """
    for number in sorted({i * len(rows) // EXAMPLES for i in range(EXAMPLES)}):
        tokens = reader.tokens(rows[number])
        told = [{"text": token.text, "id": token.id, "learned": token.learned, "weight": token.weight} for token in tokens]
        yield {"number": number, "source": rows[number]["source"], "tokens": told}
