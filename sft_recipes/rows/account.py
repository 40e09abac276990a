"""The account of a dataset: every supervised token that went in is trained, or listed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

IGNORED = -100  # the label of a position that carries no loss, as `torch.nn.CrossEntropyLoss` has it


@dataclass
class Supervision:
    """The account of a dataset: what went in, what is trained, what was left out and where it stands.

    Attributes:
        dropped: conversations that are longer than `max_length`.
        unsupervised: conversations of which no message is to be learned.
    """

    conversations: int = 0
    turns: int = 0
    rows: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    dropped: list[str] = field(default_factory=list)
    unsupervised: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `metrics.json`; token counts are totals over the dataset."""
        share = self.supervised_tokens / self.tokens if self.tokens else 0.0
        return {**vars(self), "supervised_share": round(share, 4)}
