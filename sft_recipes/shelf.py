"""Lists that live on disk once they are long, so that what a million conversations become never is in memory at once.

A shelf is read and sliced like a list. Its entries lie in a file without a name, in the datasets cache: whatever ends the process,
nothing is left of it, and no other process can write there.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, overload

from .recipe import RecipeError

T = TypeVar("T")

MANY = 20_000  # entries above which a list goes to disk
LARGE = 200_000_000  # bytes on disk, likewise; in memory they are several times as many
CHUNK = 256  # entries written and read together


class Shelf(Sequence[T]):
    """A sequence on disk, written once, chunk by chunk. The chunk that was read last stays in memory.

    Args:
        decode: a chunk's bytes to the list of its entries.

    Raises:
        RecipeError: the disk is full.
    """

    def __init__(self, decode: Callable[[bytes], list[T]] = pickle.loads):
        self._decode = decode
        self._file = tempfile.TemporaryFile(dir=folder(), prefix="sft-recipes-")  # noqa: SIM115  as long as the shelf
        self._ends, self._counts = [0], [0]  # of each chunk: where its bytes end, and how many entries there are up to there
        self._open: tuple[int, list[T]] = (-1, [])

    def put(self, encoded: bytes, count: int) -> None:
        """Add a chunk of `count` entries."""
        try:
            self._file.write(encoded)
            self._file.flush()
        except OSError as error:
            where = f"{folder() or tempfile.gettempdir()}: no room for the prepared data after {self._ends[-1] / 1e9:.1f} GB"
            raise RecipeError(f"{where}: {error.strerror}; make room, or move the folder with HF_DATASETS_CACHE") from error
        self._ends.append(self._ends[-1] + len(encoded))
        self._counts.append(self._counts[-1] + count)

    def __len__(self) -> int:
        return self._counts[-1]

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[T]: ...
    def __getitem__(self, at: int | slice) -> T | Sequence[T]:
        """An entry; of a slice a list, or where that is long a view."""
        if isinstance(at, slice):
            return picked(self, range(len(self))[at])
        place = range(len(self))[at]
        chunk = bisect_right(self._counts, place) - 1
        return self._chunk(chunk)[place - self._counts[chunk]]

    def __iter__(self) -> Iterator[T]:
        for chunk in range(len(self._counts) - 1):
            yield from self._chunk(chunk)

    def _chunk(self, number: int) -> list[T]:
        if self._open[0] != number:
            start, end = self._ends[number : number + 2]
            self._open = number, self._decode(os.pread(self._file.fileno(), end - start, start))
        return self._open[1]


class View(Sequence[T]):
    """Some entries of another sequence, without a copy.

    Args:
        entries: the other one.
        places: of the entries, ascending where they are to be read quickly.
    """

    def __init__(self, entries: Sequence[T], places: Sequence[int]):
        self.entries, self.places = entries, places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[T]: ...
    def __getitem__(self, at: int | slice) -> T | Sequence[T]:
        return picked(self.entries, self.places[at]) if isinstance(at, slice) else self.entries[self.places[at]]

    def __iter__(self) -> Iterator[T]:
        return map(self.entries.__getitem__, self.places)


def picked(entries: Sequence[T], places: Sequence[int]) -> Sequence[T]:
    """Some entries: a list where they are few or were in memory, else a view."""
    return [entries[i] for i in places] if isinstance(entries, list) or len(places) <= MANY else View(entries, places)


def collected(entries: Iterable[T], many: int | None = None) -> Sequence[T]:
    """All entries: a list where they are few and small, else a shelf.

    Args:
        many: entries that may be in memory; `None` for `MANY`.
    """
    kept: list[T] = []
    shelf: Shelf[T] | None = None
    size, waiting = 0, iter(entries)
    while chunk := list(islice(waiting, CHUNK)):
        if shelf is not None:
            shelf.put(_encoded(chunk), len(chunk))
            continue
        kept += chunk
        size += len(_encoded(chunk))
        if len(kept) > (MANY if many is None else many) or size > LARGE:
            shelf = Shelf()
            for start in range(0, len(kept), CHUNK):
                shelf.put(_encoded(kept[start : start + CHUNK]), len(kept[start : start + CHUNK]))
            kept = []
    return kept if shelf is None else shelf


def _encoded(chunk: list[Any]) -> bytes:
    return pickle.dumps(chunk, pickle.HIGHEST_PROTOCOL)


def file_without_name() -> Any:
    """An open file in the same place, for bytes to be written and then read by whoever has it."""
    return tempfile.NamedTemporaryFile(dir=folder(), prefix="sft-recipes-")


def folder() -> str | None:
    """Where shelves lie: a temporary folder in general may be in memory. `None` is that one, where the cache cannot be written."""
    from datasets import config

    try:
        Path(config.HF_DATASETS_CACHE).mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return str(config.HF_DATASETS_CACHE) if os.access(config.HF_DATASETS_CACHE, os.W_OK) else None
