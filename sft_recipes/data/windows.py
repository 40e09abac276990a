"""A stream of conversations, in windows: so many as may be in memory, read, converted and checked together.

Where a window begins depends on what the stream says alone, so that the same stream gives the same windows, and one that is
read again is known by its hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..recipe import RecipeError
from ..shelf import MANY
from .forms import Conversation
from .reading import converted, raise_faults, said
from .streams import Stream

WINDOW, WINDOW_BYTES = MANY, 32_000_000  # rows, and bytes of what they say: some 8 million tokens; with either a window is full


@dataclass(frozen=True)
class Window:
    """Conversations that were read together.

    Attributes:
        epoch: how often the stream had ended before, from 0.
        number: of the window in its epoch, from 0.
        source: the stream's state where the window begins, plain data.
        hash: of everything that its conversations say, those left out among them.
        conversations: in the order of the stream.
        left_out: how many were not taken, because they are held out.
        ends: whether the stream ended with it.
    """

    epoch: int
    number: int
    source: dict[str, Any]
    hash: str
    conversations: list[Conversation]
    left_out: int = 0
    ends: bool = False

    @property
    def place(self) -> dict[str, Any]:
        """Where it begins and what it says, for `Windows.again`; plain data."""
        return {"epoch": self.epoch, "window": self.number, "source": self.source, "hash": self.hash}


class Windows:
    """The windows of a stream; a stream that ends begins again, as its next epoch.

    Args:
        stream: the rows.
        convert: the recipe's `conversation` hook.
        faults: the list that the stream appends its own to.

    Attributes:
        held_out: fingerprints of conversations that are never to be trained.
        head: the place of the first window, once it has been read.
        whole: whether the stream ended with it.
    """

    def __init__(self, stream: Stream, convert: Callable[[dict], dict], faults: list[str]):
        self.stream, self.convert, self.faults = stream, convert, faults
        self.held_out: set[str] = set()
        self.head: dict[str, Any] | None = None
        self.whole = False
        self._rows: Iterator[tuple[Any, str]] = iter(stream)
        self._epoch = self._number = 0

    def read(self) -> Window:
        """The next window.

        Raises:
            RecipeError: every fault of it, each with file and line; or the stream holds nothing.
        """
        window = self._read()
        if self.head is None:
            self.head, self.whole = window.place, window.ends
        if window.ends:
            self._go_to(window.epoch + 1)
        else:
            self._number += 1
        if window.ends and not window.conversations and not window.left_out:
            if not window.number:
                again = " when it began again; what can be read only once takes fewer --max_steps" if window.epoch else ""
                raise RecipeError(f"the stream holds no conversation{again}")
            return self.read()
        return window

    def again(self, place: dict[str, Any]) -> Window:
        """The window that began at a place. Where the stream does not take its place up, it is read from the beginning of the epoch.

        Raises:
            RecipeError: it says something else than it did; or it has faults.
        """
        self._go_to(place["epoch"], place["window"], place["source"])
        window = self.read()
        if window.hash == place["hash"]:
            return window
        self._go_to(place["epoch"])
        while (window := self.read()).epoch == place["epoch"] and window.number < place["window"]:
            pass
        if window.hash != place["hash"]:
            raise RecipeError(
                f"epoch {place['epoch']}, window {place['window']}: the stream gives other conversations than it did when they were "
                "trained, so the run cannot go on from here; put the data back as they were, or train anew with --no-resume"
            )
        return window

    def _go_to(self, epoch: int, number: int = 0, source: dict[str, Any] | None = None) -> None:
        self._epoch, self._number = epoch, number
        self.stream.load_state_dict(source or {"epoch": epoch})
        self._rows = iter(self.stream)

    def _read(self) -> Window:
        """The rows up to where the window is full or the stream ends."""
        source, digest = self.stream.state_dict(), hashlib.sha256()
        found: list[Conversation] = []
        rows, size, left_out = 0, 0, 0
        for row, where in self._rows:
            rows += 1
            conversation = converted(row, where, self.convert, self.faults)
            if conversation is not None:
                text = said(conversation)
                digest.update(hashlib.sha256(text).digest() + repr(conversation.get("tests")).encode("utf-8", "surrogatepass"))
                held = bool(self.held_out) and hashlib.sha256(text).hexdigest() in self.held_out
                left_out += held
                found += [] if held else [conversation]
                size += len(text)
            if rows >= WINDOW or size >= WINDOW_BYTES:
                break
        faults, self.faults[:] = list(self.faults), []
        raise_faults(faults)
        return Window(self._epoch, self._number, source, digest.hexdigest(), found, left_out, rows < WINDOW and size < WINDOW_BYTES)
