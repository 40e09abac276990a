"""What was read of a stream, and what became of it: the `Supervision` of all its windows, with lists that stay short."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..rows import Supervision

LISTED = 1000  # places of each kind that are named; the others are counted
SUMS = ("conversations", "turns", "rows", "tokens", "supervised_tokens", "lost_tokens")
LISTS = ("trimmed", "dropped", "unsupervised")


@dataclass(frozen=True)
class Account:
    """Sums over windows; the names are those of `Supervision`.

    Attributes:
        windows: how many there were.
        left_out: conversations that are held out and came again.
        longest: tokens of the longest turn with its prompt.
        sums: of `SUMS`.
        lists: the first places of each of `LISTS`.
        counts: how many places each of them has.
    """

    windows: int = 0
    left_out: int = 0
    longest: int = 0
    sums: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SUMS, 0))
    lists: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in LISTS})
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LISTS, 0))

    def plus(self, window: Supervision, left_out: int) -> Account:
        """With one more window."""
        return Account(
            self.windows + 1,
            self.left_out + left_out,
            max(self.longest, window.longest),
            {name: self.sums[name] + getattr(window, name) for name in SUMS},
            {name: [*self.lists[name], *getattr(window, name)][:LISTED] for name in LISTS},
            {name: self.counts[name] + len(getattr(window, name)) for name in LISTS},
        )

    @property
    def supervision(self) -> Supervision:
        """The same as one, its lists cut short."""
        found: dict[str, Any] = {**self.sums, **self.lists, "longest": self.longest}
        return Supervision(**found)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, which `Account(**...)` takes."""
        return asdict(self)
