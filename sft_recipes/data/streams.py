"""Sources as streams: rows one after the other, never all at once, from a place that can be told and taken up again.

JsonLines (`files`)   the byte and the line that come next
Examples              what `datasets` tells of an `IterableDataset`
Counted               rows that can only be read from their beginning: how many there were
Chained               several streams, one behind the other
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from ..recipe import Rows, Source
from .files import SUFFIXES, JsonLines, is_list
from .reading import read, without_none
from .tables import broken, loaded


class Stream(Protocol):
    """Rows, each with where it stands (`file:line`, `dataset:row`); what is wrong is appended to a list, not raised."""

    def __iter__(self) -> Iterator[tuple[Any, str]]:
        """From the present place on, which goes along."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The place behind the row that came last, as plain data."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from such a place; one that says nothing but `epoch` is the beginning of that epoch, counted from 0."""
        ...


class Counted:
    """Rows that can only be read from their beginning; to take one's place up is to read, and leave out, all before it.

    Args:
        rows: gives them, the same at every call.
    """

    def __init__(self, rows: Callable[[], Iterable[tuple[Any, str]]]):
        self.rows, self.count = rows, 0

    def state_dict(self) -> dict[str, Any]:
        return {"row": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state.get("row", 0)

    def __iter__(self) -> Iterator[tuple[Any, str]]:
        for row in islice(self.rows(), self.count, None):
            self.count += 1
            yield row


class Examples:
    """A `datasets.IterableDataset`; its state is upstream's, so that files and rows that were read are not read again where it can.

    Args:
        load: gives the dataset.
        name: what its rows are called, `name:0`, `name:1`, ...
        faults: why it cannot be loaded, or not to its end.
    """

    def __init__(self, load: Callable[[], Any], name: Source | str, faults: list[str]):
        self.load, self.name, self.faults = load, name, faults
        self.state: dict[str, Any] = {"epoch": 0, "row": 0}
        self._opened: Any = None

    def state_dict(self) -> dict[str, Any]:
        inner = getattr(self._opened, "state_dict", None)
        return {**self.state, "dataset": inner()} if inner else self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state, self._opened = {"epoch": 0, "row": 0, **state}, None

    def __iter__(self) -> Iterator[tuple[Any, str]]:
        epoch, number = self.state["epoch"], self.state["row"]
        try:
            self._opened, resumed = self.load(), self.state.get("dataset")
            if hasattr(self._opened, "set_epoch"):
                self._opened.set_epoch(epoch)
            if hasattr(self._opened, "load_state_dict"):
                self._opened.load_state_dict(resumed or {})  # an empty one is the beginning, wherever it was before
            for row in self._opened if resumed else islice(self._opened, number, None):
                number += 1
                self.state = {"epoch": epoch, "row": number}
                yield without_none(row), f"{self.name}:{number - 1}"
        except Exception as error:  # the Hub, the network, every file format and a person's own code raise their own
            self.faults.append(broken(self.name, number - 1, error))


class Chained:
    """Several streams, one behind the other."""

    def __init__(self, parts: Sequence[Stream]):
        self.parts, self.at, self.epoch = parts, 0, 0

    def state_dict(self) -> dict[str, Any]:
        inner = self.parts[self.at].state_dict() if self.at < len(self.parts) else {}
        return {"epoch": self.epoch, "source": self.at, "inner": inner}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at, self.epoch = state.get("source", 0), state.get("epoch", 0)
        for number, part in enumerate(self.parts):
            part.load_state_dict(state["inner"] if number == self.at and state.get("inner") else {"epoch": self.epoch})

    def __iter__(self) -> Iterator[tuple[Any, str]]:
        while self.at < len(self.parts):
            yield from self.parts[self.at]
            self.at += 1


def stream(sources: Sequence[Source | Rows], faults: list[str]) -> Stream:
    """A recipe's sources, in order.

    Args:
        sources: files, datasets, or functions that make rows.
        faults: what is wrong with them is appended here as it is met.
    """
    return Chained([_of(source, faults) for source in sources])


def stream_of(rows: Iterable[dict], name: str, faults: list[str]) -> Stream:
    """Rows of a person's own: a list, a `datasets.Dataset`, a `datasets.IterableDataset`, or what can be iterated again and again."""
    if isinstance(rows, list):
        return Chained([Counted(lambda: ((row, f"{name}:{i}") for i, row in enumerate(rows)))])
    return Chained([Examples(lambda: rows, name, faults)])


def _of(source: Source | Rows, faults: list[str]) -> Stream:
    if not isinstance(source, Source):
        return Counted(lambda: read(source, faults))
    file = Path(source.path)
    if file.suffix in SUFFIXES:
        return Counted(lambda: read(source, faults)) if is_list(file) else JsonLines(file, faults)
    return Examples(partial(loaded, source, streaming=True), source, faults)
