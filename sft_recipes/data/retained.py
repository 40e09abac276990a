"""What a model is to keep: conversations, and plain texts, which are learned from their second token on.

A text goes through the same hands as a conversation; it has one message, of the role `text`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..recipe import Rows, Source
from .forms import Conversation
from .reading import load

TEXT = "text"  # the role


def load_retained(sources: Iterable[Source | Rows], convert: Callable[[dict], dict]) -> Sequence[Conversation]:
    """Read `retain` data.

    Args:
        sources: files, datasets, or functions that make rows.
        convert: the recipe's `conversation` hook, for rows that are no plain text.

    Raises:
        RecipeError: every fault of every row at once, each with file and line.
    """
    return load(sources, convert, as_it_is=_text)


def is_text(conversation: Conversation) -> bool:
    """Whether it is a plain text."""
    return bool(conversation["messages"]) and conversation["messages"][0]["role"] == TEXT


def _text(row: dict[str, Any], where: str) -> Conversation | None:
    """A row of plain text, `{"text": ...}` as pre-training data have it; `None` for any other."""
    if not isinstance(row.get("text"), str) or row.keys() & {"messages", "conversations", "prompt", "instruction"}:
        return None
    return {"messages": [{"role": TEXT, "content": row["text"]}], "tools": None, "source": where}
