"""The later windows of a stream, made as the first one was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..data.reading import Conversation, raise_faults
from ..parts import Part, part_of
from ..preflight import Layout
from ..preflight.layouts import laid_together
from ..prepare import Prepared
from ..turns.turn import collector_paused
from .rows import Row, RowStream


def stream_of(prepared: Prepared, layout: Layout, config: Any) -> RowStream:
    """The rows of a prepared stream, which begin with those that were prepared.

    Args:
        prepared: with a `stream`.
        layout: of its rows, which later ones have too: the same size, or as many conversations a row.
        config: resolved.
    """
    assert prepared.stream is not None
    recipe, tokenizer = prepared.recipe, prepared.tokenizer

    @collector_paused()
    def made(conversations: list[Conversation]) -> tuple[Part, Sequence[Row]]:
        faults: list[str] = []
        part = part_of(conversations, len(conversations), recipe, tokenizer, config.max_length, faults, kept=False)
        raise_faults(faults)
        if layout.packed is None or not part.rows:
            return part, part.rows
        return part, laid_together(recipe, config, part.rows, share=layout.name == "tree").rows

    rows = prepared.rows if layout.packed is None else layout.packed.rows
    return RowStream(prepared.stream, prepared.train, rows, made, recipe.max_lost)
