"""JSON files, row by row: one object a line, from any line on; or one list."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..recipe import nearest
from .messages import short

NEXT = re.compile(r"[^\s,]")  # where an entry of a list begins, or the list ends
SUFFIXES = (".jsonl", ".json")


def read_json(file: Path, faults: list[str]) -> Iterator[tuple[Any, str]]:
    """The rows of a file, each with `file:line`; faults are appended, not raised."""
    yield from _read_list(file, faults) if is_list(file) else JsonLines(file, faults)


class JsonLines:
    """The rows of a file with one JSON object a line, each with `file:line`; its state is the byte and the line that come next.

    Args:
        file: may be absent, which is a fault.
        faults: of the file and of its lines, appended, not raised.
    """

    def __init__(self, file: Path, faults: list[str]):
        self.file, self.faults = file, faults
        self.byte = self.line = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"byte": self.byte, "line": self.line}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; an empty state is the beginning."""
        self.byte, self.line = state.get("byte", 0), state.get("line", 0)

    def __iter__(self) -> Iterator[tuple[Any, str]]:
        if not self.file.is_file():
            here = self.file.parent.glob("*.jsonl") if self.file.parent.is_dir() else ()
            self.faults.append(f"{self.file}: no such file{nearest(self.file.name, [f.name for f in here])}")
            return
        empty, name = self.byte == 0, _shown(self.file)
        with self.file.open("rb") as lines:
            lines.seek(self.byte)
            for line in lines:
                self.byte, self.line = self.byte + len(line), self.line + 1
                if not line.strip():
                    continue
                empty = False
                try:
                    yield json.loads(line, object_pairs_hook=_once), f"{name}:{self.line}"
                except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of a number with thousands of digits
                    self.faults.append(f"{name}:{self.line}: not JSON: {error}")
        if empty:
            self.faults.append(f"{name}: the file is empty; it needs one conversation a line")


def is_list(file: Path) -> bool:
    """Whether it is a `.json` file that holds one list, as Alpaca's and LLaMA-Factory's are."""
    return file.suffix == ".json" and file.is_file() and _begins_a_list(file)


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
