"""Turns to rows (promise 3): what the model sees in one forward pass, and an account of every conversation.

Rows here are plain: one sequence each, `input_ids` and `labels` of equal length, -100 where nothing is learned. TRL's
collator pads them on the right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .turns import Turn

IGNORED = -100  # the label of a position that carries no loss, as `torch.nn.CrossEntropyLoss` has it


@dataclass
class Supervision:
    """The account of a dataset: what went in, what is trained, what was left out and where it stands."""

    conversations: int = 0
    turns: int = 0
    rows: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    dropped: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `metrics.json`; token counts are totals over the dataset."""
        share = self.supervised_tokens / self.tokens if self.tokens else 0.0
        return {**vars(self), "supervised_share": round(share, 4)}


def paths(turns: Sequence[Turn]) -> list[tuple[list[int], list[int]]]:
    """The fewest sequences that train every turn in its served context.

    Where a turn's prompt continues what came before, token for token, the turns share one sequence. Where the template
    rewrote history, the turn begins a sequence of its own.

    Returns:
        `(input_ids, labels)` pairs; both lists have the same length.
    """
    found: list[tuple[list[int], list[int]]] = []
    for turn in turns:
        if found and turn.prompt_ids[: len(found[-1][0])] == found[-1][0]:
            input_ids, labels = found[-1]
            context = turn.prompt_ids[len(input_ids) :]
        else:
            input_ids, labels = [], []
            found.append((input_ids, labels))
            context = turn.prompt_ids
        input_ids += [*context, *turn.completion_ids]
        labels += [IGNORED] * len(context) + turn.completion_ids
    return found


def build_rows(supervised: Iterable[tuple[str, Sequence[Turn]]], max_length: int | None) -> tuple[list[dict[str, Any]], Supervision]:
    """Rows for training, and the account of them.

    Args:
        supervised: each conversation's `file:line` and turns.
        max_length: conversations with a longer row (in tokens) are dropped whole and listed; `None` keeps all.

    Returns:
        rows `{"input_ids", "labels", "source"}` and the `Supervision`.
    """
    rows, account = [], Supervision()
    for source, turns in supervised:
        sequences = paths(turns)
        longest = max((len(input_ids) for input_ids, _ in sequences), default=0)
        account.conversations += 1
        if max_length is not None and longest > max_length:
            account.dropped.append(f"{source}: {longest} tokens, max_length is {max_length}")
            continue
        account.turns += len(turns)
        account.rows += len(sequences)
        account.tokens += sum(len(input_ids) for input_ids, _ in sequences)
        account.supervised_tokens += sum(len(turn.completion_ids) for turn in turns)
        rows += [{"input_ids": ids, "labels": labels, "source": source} for ids, labels in sequences]
    return rows, account
