"""Sources to conversations: read, convert, check the shape, split. Every fault names its file and line.

A conversation is plain data: `{"messages": [...], "tools": [...], "source": "file:line"}` in the OpenAI chat form.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..recipe import RecipeError, Rows, Source, nearest
from ..shelf import collected, picked
from ..watch import watched
from .forms import Conversation, normalized
from .messages import short
from .tables import read_table

NEXT = re.compile(r"[^\s,]")  # where an entry of a list begins, or the list ends
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
    clean = (lambda row: row) if isinstance(rows, list) else _without_none
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
    elif Path(source.path).suffix in (".jsonl", ".json"):
        yield from _read_jsonl(Path(source.path), faults)
    else:
        yield from ((_without_none(row), where) for row, where in read_table(source, faults))


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


def _read_jsonl(file: Path, faults: list[str]) -> Iterator[tuple[dict, str]]:
    if not file.is_file():
        here = file.parent.glob("*.jsonl") if file.parent.is_dir() else ()
        faults.append(f"{file}: no such file{nearest(file.name, [f.name for f in here])}")
        return
    if file.suffix == ".json" and _begins_a_list(file):
        yield from _read_list(file, faults)
        return
    empty, name = True, _shown(file)
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            empty = False
            try:
                yield json.loads(line, object_pairs_hook=_once), f"{name}:{number}"
            except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of a number with thousands of digits
                faults.append(f"{name}:{number}: not JSON: {error}")
    if empty:
        faults.append(f"{name}: the file is empty; it needs one conversation a line")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, in which no key may stand twice: the parser would keep the last value alone."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {short(twice)} stands twice in one object; keep one")
    return found


def _begins_a_list(file: Path) -> bool:
    with file.open("rb") as start:
        return start.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _read_list(file: Path, faults: list[str]) -> Iterator[tuple[dict, str]]:
    """The rows of a `.json` file that is one list, as Alpaca's and LLaMA-Factory's are, each with the line it begins on."""
    name, empty = _shown(file), True
    try:
        for row, line in _elements(file.read_text("utf-8-sig")):
            empty = False
            yield row, f"{name}:{line}"
    except (ValueError, RecursionError) as error:
        faults.append(f"{name}:{getattr(error, 'lineno', 1)}: not JSON: {error}")
    else:
        faults += [f"{name}: the list is empty; it needs one conversation an entry"] if empty else []


def _elements(text: str) -> Iterator[tuple[Any, int]]:
    """The entries of a JSON list, one at a time, as the parser of the standard library does not say where each begins."""
    at, decoder = text.index("[") + 1, json.JSONDecoder(object_pairs_hook=_once)
    line = 1 + text.count("\n", 0, at)
    while begins := NEXT.search(text, at):
        line += text.count("\n", at, begins.start())
        if begins[0] == "]":
            if rest := text[begins.end() :].strip():
                raise json.JSONDecodeError(f"{rest[:10]!r} after the end of the list", text, begins.end())
            return
        entry, end = decoder.raw_decode(text, begins.start())
        yield entry, line
        line, at = line + text.count("\n", begins.start(), end), end
    raise json.JSONDecodeError("the list has no end; is the file cut off?", text, len(text))


def _shown(file: Path) -> str:
    """A file's path as a person would type it from here."""
    here = Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file)


def _converted(
    rows: Iterable[tuple[Any, str]],
    convert: Callable[[dict], dict],
    faults: list[str],
    as_it_is: Callable[[dict, str], Conversation | None] = lambda row, where: None,
) -> Iterator[Conversation]:
    for row, where in rows:
        if not isinstance(row, dict):
            faults.append(f"{where}: expected an object with `messages`, found {type(row).__name__}")
            continue
        conversation = as_it_is(row, where) or attempt(partial(_conversation, convert, row, where), "conversation", where, faults)
        if conversation is not None:
            yield conversation


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


def _without_none(value: Any) -> Any:
    """Arrow gives every row the keys of all rows, filled with `None`; templates would print them."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def fingerprint(conversation: Conversation) -> str:
    """A hash of what a conversation says, wherever it stands."""
    text = json.dumps([conversation["messages"], conversation["tools"]], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


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
