"""How far a long preparation has come: one line that moves in a terminal, now and then a plain one elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

PAUSE = 30.0  # seconds between plain lines


def watched(entries: Iterable[T], doing: str, total: int | None = None, each: int = 1, unit: str = "conversations") -> Iterator[T]:
    """The entries, and a word of them on standard error once they take their time.

    Args:
        doing: what is done, such as `supervising`.
        total: how many units there are in all, if that is known.
        each: units of an entry.
        unit: what is counted.
    """
    if sys.stderr.isatty():
        many = None if total is None else -(-total // each)
        yield from tqdm(entries, doing, many, unit_scale=each if each > 1 else True, unit=f" {unit}", delay=2, leave=False)
        return
    first = int(os.environ.get("RANK", "0")) == 0
    began = said = monotonic()
    for number, entry in enumerate(entries, 1):
        yield entry
        if first and (now := monotonic()) - said >= PAUSE:
            done = number * each if total is None else min(number * each, total)
            of = "" if total is None else f" of {total:,}"
            print(f"{doing}: {done:,}{of} {unit}, {done / (now - began):,.0f} a second", file=sys.stderr, flush=True)
            said = now
