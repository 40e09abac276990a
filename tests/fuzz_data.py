"""What must hold of a mutated data file: every row is trained or listed, every fault is one line that names file and line.

What went in is counted here by other means than the reader's; see `mutated_data` for how the files are made.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sft_recipes import RecipeError, Source, load_recipe, preflight
from sft_recipes import prepare as preparing
from sft_recipes.config import resolve
from sft_recipes.data import reading
from sft_recipes.recipe import LONGEST
from sft_recipes.turns.supervisor import learned

PLACE = re.compile(r"^data:\d+|^data\.(jsonl|json|parquet)(:\d+)?\b|^data: cannot be loaded")
LEFT = re.compile(r"^no (training|held-out) conversation is left|^data\b")
_MADE: dict[str, object] = {}


class Broken(AssertionError):
    """A file for which something does not hold."""


def judged(file: Path, whole: bool = False) -> str:
    """What became of a file, `loaded` or `faulted`; the working directory is the file's.

    Args:
        whole: the recipe's whole preflight too, not the preparation of its data alone.

    Raises:
        Broken: something that must hold does not.
    """
    faults: list[str] = []
    name = "data" if file.suffix == ".csv" else file.name
    kept = list(reading._converted(reading.read(Source(name), faults), _hooks().conversation, faults))
    for fault in faults:
        _hold(PLACE.match(fault), f"names no file: {fault!r}")
    _all_are_there(file, [c["source"] for c in kept], faults)
    try:
        prepared = preparing.prepare(_hooks(), _recipe(name), 1024)
    except RecipeError as error:
        _one_line(error.faults)
        for fault in error.faults:
            _hold(PLACE.match(fault) or LEFT.match(fault) or fault.startswith("... and "), f"names no file: {fault!r}")
        _hold(bool(error.faults), "an error without a fault")
        _hold(not whole or _report(name).faults, "prepare has faults, check has none")
        return "faulted"
    _hold(not faults, f"trained in spite of {faults}")
    _accounted(prepared, kept)
    if whole:
        report = _report(name)
        _one_line(report.faults + report.warnings)
        json.dumps(report.as_dict())
    return "loaded"


def _all_are_there(file, kept, faults):
    """Each row that is in the file, counted by other means, is a conversation or has a fault of its own."""
    content = file.read_bytes()
    begins = content.removeprefix(b"\xef\xbb\xbf")[:64].lstrip()[:1]
    if file.suffix == ".jsonl" or (file.suffix == ".json" and begins != b"["):
        lines = {f"{file.name}:{n}" for n, line in enumerate(content.split(b"\n"), 1) if line.strip()}
        named = {where for where in lines if where in kept or any(re.match(rf"{re.escape(where)}\b", fault) for fault in faults)}
        _hold(named == lines, f"lost in silence: {sorted(lines - named)}")
        _hold(lines or faults, "an empty file without a fault")
    elif file.suffix == ".json":
        try:
            count = len(json.loads(content.decode("utf-8-sig")))
        except (ValueError, RecursionError):
            return _hold(faults, "a broken list without a fault")
        _hold(count == len(kept) or faults, f"{count} rows, {len(kept)} kept")
    elif file.suffix == ".parquet":
        try:
            count = pq.read_table(io.BytesIO(content)).num_rows
        except (pa.ArrowException, OSError, ValueError):
            return None  # datasets may read what it can; whether it does, a row at a time is checked below
        _hold(count == len(kept) or faults, f"{count} rows, {len(kept)} kept")
    return None


def _accounted(prepared, kept):
    parts = (prepared.train, prepared.held_out)
    for part in parts:
        trained = {source for row in part.rows for source in [row["source"]]}
        listed = {*part.supervision.dropped, *part.supervision.unsupervised}
        there = {c["source"] for c in part.conversations}
        named = trained | {source for source in there if any(text.startswith(source) for text in listed)}
        _hold(named == there, f"lost in silence: {sorted(there - named)}")
        turns = sum(len(learned(c["messages"])) for c in part.conversations)
        _hold(turns == sum(map(len, part.turns)), f"{turns} messages to learn, {sum(map(len, part.turns))} turns")
        for conversation, found in zip(part.conversations, part.turns, strict=True):
            for turn in found:
                said = conversation["messages"][turn.message_index].get("content", "").strip()
                spelt = prepared.tokenizer.decode(turn.completion_ids)
                _hold(said in spelt, f"{conversation['source']}: {said[:80]!r} is learned as {spelt[:80]!r}")
    _hold(sum(len(part.conversations) for part in parts) == len(kept), "conversations lost between training and held-out")


def _one_line(faults):
    for fault in faults:
        _hold(fault.isprintable(), f"not one printable line: {fault!r}")
        _hold(len(fault) <= LONGEST, f"{len(fault)} characters: {fault[:200]!r}")


def _hold(condition, text):
    if not condition:
        raise Broken(text)


def _hooks():
    return _MADE.setdefault("hooks", load_recipe("gemma-tools"))


def _recipe(name):
    made = _MADE.get("resolved") or _MADE.setdefault("resolved", resolve("gemma-tools", "tiny", data=name, held_out=1, report_to="none"))
    return made.recipe.with_fields({"data": name, "retain": None})


def _report(name):
    return preflight.check(resolve("gemma-tools", "tiny", data=name, held_out=1, report_to="none", retain=name))
