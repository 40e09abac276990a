"""The rows of a stream as a dataset that a trainer reads from its beginning to its end: as many as the run takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ..data.windows import Windows
from ..parts import Part
from ..recipe import RecipeError
from ..rows import IGNORED, with_weights
from ..rows.order import ordered
from ..turns import stop_ids
from .account import Account

Row = dict[str, Any]


class Broken(RecipeError):
    """A window that cannot be trained: the faults of its conversations."""


@dataclass(frozen=True)
class Order:
    """How the rows of each window are drawn; see `rows.order`.

    Attributes:
        step: rows of an optimiser step, all processes together.
    """

    step: int
    seed: int
    sampling: str
    packed: bool


@dataclass(frozen=True)
class Served:
    """A window, made into rows.

    Attributes:
        start: of its first row among all that the stream gives, epoch after epoch.
        place: of the window, for `Windows.again`.
        rows, order: the rows, and the indices of them in the order in which they are trained.
        before, account: what was read before it, and with it.
        stops: stop tokens of its turns.
    """

    start: int
    place: dict[str, Any]
    rows: Sequence[Row]
    order: list[int]
    before: Account
    account: Account
    stops: frozenset[int]

    @property
    def end(self) -> int:
        """Where the next one starts."""
        return self.start + len(self.rows)


class RowStream(Dataset):
    """Rows by their number, in the order of training. To read on is cheap; to go back is to read the stream again.

    A window is made when its first row is asked for, and forgotten once a later one is trained. One with faults ends the
    stream, but not at once: every process learns of it in `reach`, at the same step, however far each has read ahead.

    Args:
        windows: of the stream, of which the first has been read.
        head: that one, prepared.
        head_rows: its rows, packed or separate, in the order of the data.
        make: a later one: its conversations to what `head` is, and its rows.
        max_lost: share of the supervised tokens that may be lost, over all windows so far.
    """

    def __init__(
        self,
        windows: Windows,
        head: Part,
        head_rows: Sequence[Row],
        make: Callable[[list[Any]], tuple[Part, Sequence[Row]]],
        max_lost: float,
    ):
        self.windows, self.make, self.max_lost = windows, make, max_lost
        self.head, self.head_rows = head, head_rows
        self.length = 0
        self.order: Order | None = None
        self._served: list[Served] = []
        self._broken: Broken | None = None
        self._moved = False  # whether `windows` have been read behind the head

    def begin(self, length: int, order: Order) -> None:
        """Before training: how many rows the run takes, and how they are drawn."""
        self.length, self.order = length, order
        self._go_to(None)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Row:
        """A row, with `loss_weights`; behind a fault any row, which `reach` keeps from being trained."""
        if number < self._served[0].start:
            self._go_to(None)
        while number >= self._served[-1].end and not self._broken:
            self._read_on()
        served = next((s for s in reversed(self._served) if s.start <= number and s.rows), self._served[0])
        row = served.rows[served.order[min(number - served.start, len(served.order) - 1)]]
        return with_weights({name: value if isinstance(value, list | str) else value.tolist() for name, value in row.items()})

    def reach(self, number: int) -> None:
        """All rows before this one are about to be trained: windows before theirs are forgotten.

        Raises:
            Broken: one of them is in a window that has faults; nothing changes.
        """
        while number > self._served[-1].end and not self._broken:
            self._read_on()
        if self._broken and number > self._served[-1].end:
            raise self._broken
        while len(self._served) > 1 and self._served[1].start < number:
            del self._served[0]

    # What has been trained

    @property
    def stops(self) -> set[int]:
        """Stop tokens of the windows up to the one that was reached last."""
        return set(self._served[0].stops)

    def account(self, number: int) -> dict[str, Any]:
        """What was read of the stream until all rows before this one were trained, and what of it they are; plain data."""
        served, before = self._served[0], self._served[0].before
        rows = [served.rows[i] for i in served.order[: number - served.start]]
        whole = before.sums["conversations"] - before.counts["dropped"] - before.counts["unsupervised"]
        trained = {
            "rows": number,
            "conversations": whole + len({source for row in rows for source in row.get("sources") or [row["source"]]}),
            "supervised_tokens": before.sums["supervised_tokens"] + sum(_labelled(row) for row in rows),
        }
        account = served.account
        found = {"epoch": served.place["epoch"], "windows": account.windows, "left_out": account.left_out, "found": account.counts}
        return {**account.supervision.as_dict(), "stream": {**found, "trained": trained}}

    def state_dict(self) -> dict[str, Any]:
        """The place of the window that was reached last, for another process to go on from; plain data."""
        served = self._served[0]
        stops = sorted(served.stops)
        return {"start": served.start, "place": served.place, "before": served.before.as_dict(), "stops": stops}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to such a place.

        Raises:
            RecipeError: the stream gives something else there than it did, or the window has faults now.
        """
        self._go_to(None if state["place"] == self.windows.head else state)

    # Windows

    def _go_to(self, state: dict[str, Any] | None) -> None:
        """To the head, or to a window of which `state_dict` told."""
        self._broken = None
        if state is None:
            if self._moved:
                self.windows.again(self.windows.head or {})
            self._moved = False
            self._served = [self._serve(self.windows.head or {}, 0, Account(), self.head, self.head_rows, 0, frozenset())]
            return
        self._moved = True
        window = self.windows.again(state["place"])
        part, rows = self.make(window.conversations)
        before, stops = Account(**state["before"]), frozenset(state["stops"])
        self._served = [self._serve(window.place, state["start"], before, part, rows, window.left_out, stops)]

    def _read_on(self) -> None:
        """One more window; or what is wrong with it."""
        last, self._moved = self._served[-1], True
        try:
            window = self.windows.read()
            part, rows = self.make(window.conversations)
            served = self._serve(window.place, last.end, last.account, part, rows, window.left_out, last.stops)
            self._refuse_lost(served.account)
        except RecipeError as error:
            self._broken = Broken(*error.faults)
        else:
            self._served.append(served)

    def _serve(
        self, place: dict[str, Any], start: int, before: Account, part: Part, rows: Sequence[Row], left_out: int, stops: frozenset[int]
    ) -> Served:
        assert self.order is not None
        o, lengths = self.order, [len(row["input_ids"]) for row in rows]
        order = ordered(lengths, place["epoch"], place["window"], start % o.step, o.step, o.seed, o.sampling, o.packed)
        found = frozenset(stop for turns in part.turns for stop in stop_ids(turns))
        account = before.plus(part.supervision, left_out)
        return Served(start, place, rows, order, before, account, stops | found)

    def _refuse_lost(self, account: Account) -> None:
        share = account.supervision.lost_share
        if share > self.max_lost:
            first = [*account.lists["trimmed"], *account.lists["dropped"]][0]
            raise RecipeError(
                f"{account.counts['trimmed'] + account.counts['dropped']:,} of {account.sums['conversations']:,} conversations read of the "
                f"stream are too long, {share:.2%} of their supervised tokens are lost, max_lost is {self.max_lost:.2%}; "
                f"--max_lost {math.ceil(share * 100) / 100:g} --resume goes on so: {first}"
            )


def _labelled(row: Row) -> int:
    return int(np.count_nonzero(np.asarray(row["labels"]) != IGNORED))
