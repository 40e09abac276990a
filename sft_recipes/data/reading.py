"""Sources to conversations: read, convert, check the shape, split. Every fault names its file and line.

A conversation is plain data: `{"messages": [...], "tools": [...], "source": "file:line"}` in the OpenAI chat form.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..recipe import RecipeError, Rows, Source
from ..shelf import collected, picked
from ..watch import watched
from .files import SUFFIXES, read_json
from .forms import Conversation, normalized
from .tables import read_table

SHOWN = 20  # faults printed before the rest are only counted


def load(
    sources: Iterable[Source | Rows],
    convert: Callable[[dict], dict],
    as_it_is: Callable[[dict, str], Conversation | None] = lambda row, where: None,
) -> Sequence[Conversation]:
    """Read every source and convert every row; many of them lie on disk.

    Args:
        sources: files, datasets, or functions that make rows, read in order.
        convert: the recipe's `conversation` hook: a row as its source has it, to `{"messages", "tools"}`.
        as_it_is: what a row is, with where it stands, if it needs no such thing; `None` for one that does.

    Raises:
        RecipeError: every fault of every row at once (the first 20 in words), each with file and line.
    """
    faults: list[str] = []
    rows = (c for source in sources for c in _converted(read(source, faults), convert, faults, as_it_is))
    conversations = collected(watched(rows, "reading"))
    raise_faults(faults)
    return conversations


def load_rows(rows: Iterable[dict], name: str, convert: Callable[[dict], dict]) -> Sequence[Conversation]:
    """The same for rows in memory (a list or a `datasets.Dataset`), which are called `name:0`, `name:1`, ..."""
    faults: list[str] = []
    clean = (lambda row: row) if isinstance(rows, list) else without_none
    conversations = collected(_converted(((clean(row), f"{name}:{i}") for i, row in enumerate(rows)), convert, faults))
    raise_faults(faults)
    return conversations


def raise_faults(faults: list[str]) -> None:
    """Raise all faults as one error, the first 20 in words; nothing where there are none."""
    if faults:
        more = [f"... and {len(faults) - SHOWN} more faults"] if len(faults) > SHOWN else []
        raise RecipeError(*faults[:SHOWN], *more)


def read(source: Source | Rows, faults: list[str]) -> Iterator[tuple[dict, str]]:
    """A source's rows, each with where it stands (`file:line`, `dataset:row`, `function:row`); faults are appended, not raised."""
    if not isinstance(source, Source):
        yield from _made(source, faults)
    elif Path(source.path).suffix in SUFFIXES:
        yield from read_json(Path(source.path), faults)
    else:
        yield from ((without_none(row), where) for row, where in read_table(source, faults))


def _made(source: Rows, faults: list[str]) -> Iterator[tuple[dict, str]]:
    """The rows that a recipe's function makes, until it raises."""
    name, number = _shown_name(source), -1
    try:
        for number, row in enumerate(source()):
            yield row, f"{name}:{number}"
    except (Exception, SystemExit) as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        after = f"after row {number} " if number >= 0 else ""
        faults.append(f"{name}: {after}it raised {type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno})")


def _shown_name(rows: Rows) -> str:
    """A function by its recipe's name and its own."""
    made_by = rows.func if isinstance(rows, partial) else rows
    return f"{getattr(made_by, '__module__', '').rpartition('.')[2]}.{getattr(made_by, '__name__', type(made_by).__name__)}"


def _converted(
    rows: Iterable[tuple[Any, str]],
    convert: Callable[[dict], dict],
    faults: list[str],
    as_it_is: Callable[[dict, str], Conversation | None] = lambda row, where: None,
) -> Iterator[Conversation]:
    for row, where in rows:
        conversation = (as_it_is(row, where) if isinstance(row, dict) else None) or converted(row, where, convert, faults)
        if conversation is not None:
            yield conversation


def converted(row: Any, where: str, convert: Callable[[dict], dict], faults: list[str]) -> Conversation | None:
    """A row as a conversation, its shape checked; `None` where it has faults, which are appended with where it stands."""
    if not isinstance(row, dict):
        faults.append(f"{where}: expected an object with `messages`, found {type(row).__name__}")
        return None
    return attempt(partial(_conversation, convert, row, where), "conversation", where, faults)


def _conversation(convert: Callable[[dict], dict], row: dict, where: str) -> Conversation:
    return normalized(convert(row), where)


def attempt(work: Callable[[], Any], hook: str, where: str, faults: list[str]) -> Any:
    """What `work` gives; `None` where it raises, and a fault that names the place, and the hook where that is to blame."""
    try:
        return work()
    except RecipeError as error:
        faults += [fault if fault.startswith(where) else f"{where}: {fault}" for fault in error.faults]
    except (Exception, SystemExit) as error:  # a recipe's own hook, which may not have expected such a row
        at = traceback.extract_tb(error.__traceback__)[-1]
        faults.append(f"{where}: {hook}() raised {type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno})")
    return None


def without_none(value: Any) -> Any:
    """Arrow gives every row the keys of all rows, filled with `None`; templates would print them."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list) else value


def said(conversation: Conversation) -> bytes:
    """What a conversation says, wherever it stands, in UTF-8."""
    return json.dumps([conversation["messages"], conversation["tools"]], sort_keys=True, ensure_ascii=False).encode()


def fingerprint(conversation: Conversation) -> str:
    """A hash of that."""
    return hashlib.sha256(said(conversation)).hexdigest()


def split(conversations: Sequence[Conversation], held_out: int) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
    """Hold out `held_out` conversations, and at most a fifth, chosen by their content.

    The choice depends on neither order nor seed, and equal conversations go to the same side. Where no fifth can be had so
    (fewer than five, or each many times), the rarest is held out, unless all are equal.

    Returns:
        the conversations to train on and the ones held out, each in their original order.
    """
    prints = [fingerprint(conversation) for conversation in conversations]
    copies = Counter(prints)
    chosen: set[str] = set()
    room = min(held_out, len(prints) // 5)
    for one in sorted(copies):
        if copies[one] <= room:
            chosen.add(one)
            room -= copies[one]
    if held_out > 0 and not chosen and len(copies) > 1:
        chosen = {min(copies, key=lambda one: (copies[one], one))}
    train, others = ([i for i, p in enumerate(prints) if (p in chosen) is held] for held in (False, True))
    return picked(conversations, train), picked(conversations, others)
