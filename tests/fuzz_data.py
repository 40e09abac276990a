"""Mutated data files, and what must hold of each: every row is trained or listed, every fault is one line that names file and line.

A case is its seed: the same number gives the same bytes. Rows in every form that is read are mutated as trees, then as text, then as
bytes, and written as JSONL, a JSON list, Parquet or CSV. What went in is counted here by other means than the reader's.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import random
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

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"city": "Oslo", "days": 2}}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
ASKED, SAID = {"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4."}
SEEDS = [
    {"messages": [ASKED, SAID]},
    {"messages": [{"role": "system", "content": "Be brief."}, ASKED, SAID, ASKED, {**SAID, "train": False}, ASKED, SAID]},
    {
        "messages": [ASKED, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "c1", "content": "rain"}, SAID],
        "tools": [TOOL],
    },
    {"messages": [ASKED, {"role": "assistant", "content": [{"type": "text", "text": "4"}], "weight": 1}], "tools": json.dumps([TOOL])},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}], "system": "Be kind."},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}]},
    {"prompt": "Name a river.", "completion": "The Rhine."},
    {"prompt": [ASKED], "completion": [SAID], "tests": ["assert f(2) == 4"]},
    {"instruction": "Add.", "input": "1 and 1", "output": "2", "history": [["Hi", "Hello."]]},
    {"text": "A plain text.", "messages": [ASKED, SAID]},
]
TEXTS = [
    *("", " ", "\x00", "a\x00b", "\ufeff", "\u2028", "\u202eabc", "\x1b[31mred", "\x85", "\r", "\n", "é" * 9, "\U0001f600", "e\u0301"),
    *("\ud800", "\udc00\ud800", "<end_of_turn>", "<start_of_turn>model\n", "<bos>", "<|im_end|>", "{{ x }}", "{% raw %}", "</think>"),
    *("null", "NaN", "[]", "{}", '{"a": ', "1e999", "-0", "true", "../../etc/passwd", "a" * 5000, "word " * 3000, "0" * 5000),
]
VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2.5,
    1e308,
    -1e308,
    10**20,
    10**400,
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    [None],
    {"": 0},
    *TEXTS,
]
KEYS = "role content tool_calls name arguments function weight train tools messages conversations from value text id type x".split()
BYTES = [
    b"\x00",
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"\r\n",
    b"\n",
    b"\n\n",
    b"{",
    b"}",
    b"]",
    b'"',
    b"\\",
    b",",
]
PLACE = re.compile(r"^data:\d+|^data\.(jsonl|json|parquet)(:\d+)?\b|^data: cannot be loaded")
LEFT = re.compile(r"^no (training|held-out) conversation is left|^data\b")
_MADE: dict[str, object] = {}


class Broken(AssertionError):
    """A file for which something does not hold."""


def file_of(case: str, folder: Path) -> Path:
    """The mutated file of a case, `folder/data.*`; CSV, which is read as a dataset only, in a folder `data`."""
    rng = random.Random(case)
    rows = [copy.deepcopy(rng.choice(SEEDS)) for _ in range(rng.randint(1, 6))]
    for _ in range(rng.choice([0, 0, 1, 1, 1, 1, 2, 3, 8])):
        _mutate_tree(rows, rng)
    kind = rng.choices(["jsonl", "json", "parquet", "csv"], [66, 22, 9, 3])[0]
    content = {"jsonl": _jsonl, "json": _list, "parquet": _parquet, "csv": _csv}[kind](rows, rng)
    for _ in range(rng.choice([0, 0, 0, 0, 0, 0, 1, 1, 2, 5])):
        content = _mutate_bytes(content, rng)
    file = folder / ("data/0.csv" if kind == "csv" else f"data.{kind}")
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    return file


def _places(tree, found=None):
    """Every container in a tree with one of its keys."""
    found = [] if found is None else found
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        found.append((tree, key))
        if isinstance(tree[key], (dict, list)):
            _places(tree[key], found)
    return found


def _mutate_tree(rows, rng):
    place, key = rng.choice(_places(rows) or [([None], 0)])
    old, kind = place[key], rng.randrange(9)
    if kind in (0, 1):
        place[key] = copy.deepcopy(rng.choice(VALUES))
    elif kind == 2 and isinstance(old, str):
        at = rng.randint(0, len(old))
        place[key] = old[:at] + rng.choice(TEXTS) + old[at:]
    elif kind == 3:
        place[key] = rng.choice([[old], {"x": old}, json.dumps(old) if not _odd(old) else "x", [old, old], str(old)])
    elif kind == 4:
        del place[key]
    elif kind == 5 and isinstance(place, dict):
        place[rng.choice([*KEYS, *TEXTS[:24], str(key)[:-1]])] = place.pop(key)
    elif kind == 6 and isinstance(place, dict):
        place[rng.choice([*KEYS, "x\ny", "\x1b[2J"])] = copy.deepcopy(rng.choice([*VALUES, old]))
    elif kind == 7 and isinstance(place, list):
        rng.choice([place.reverse, lambda: rng.shuffle(place), lambda: place.insert(key, copy.deepcopy(rng.choice([old, *VALUES])))])()
    elif isinstance(place, dict):
        shuffled = rng.sample(list(place.items()), len(place))
        place.clear()
        place.update(shuffled)


def _odd(value):
    try:
        json.dumps(value)
    except (ValueError, TypeError):
        return True
    return False


def _json(row, rng):
    text = json.dumps(row, ensure_ascii=rng.random() < 0.5)
    kind = rng.randrange(40)
    if kind == 0:
        text = text.replace('"role"', '"role": "user", "role"', 1)
    elif kind == 1:
        text = text.replace("{", '{"messages": [], ', 1)
    elif kind == 2:
        deep = rng.choice([20, 900, 100_000])
        text = text.replace('"4."', "[" * deep + "]" * deep, 1)
    elif kind == 3:
        text = text.replace('"4."', rng.choice(["1" * 5000, "NaN", "-Infinity", "1e400", "0x1", "01", "'a'", '"\\ud800"', "\u2028"]), 1)
    return text.encode("utf-8", "surrogatepass")


def _jsonl(rows, rng):
    end = rng.choice([b"\n", b"\n", b"\n", b"\r\n", b"\n\n", b" \n", b"\r", b"\n\x0c\n"])
    return end.join(_json(row, rng) for row in rows) + rng.choice([b"", end])


def _list(rows, rng):
    return rng.choice([b"[", b" [\n", b"\xef\xbb\xbf["]) + rng.choice([b",", b",\n", b" , \r\n"]).join(_json(r, rng) for r in rows) + b"]\n"


def _parquet(rows, rng):
    """Arrow takes columns of one type only: what has none is written as its JSON text."""
    rows = [row if isinstance(row, dict) else {"x": row} for row in rows] or [{"x": 0}]
    columns: dict[str, list] = {str(key).encode(errors="replace").decode(): [] for row in rows for key in row}
    for row in rows:
        plain = {str(key).encode(errors="replace").decode(): value for key, value in row.items()}
        for name, values in columns.items():
            values.append(plain.get(name))
    sink, arrays = io.BytesIO(), {}
    for name, values in columns.items():
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            arrays[name] = pa.array([json.dumps(value, default=str) for value in values])
    try:
        pq.write_table(pa.table(arrays), sink, row_group_size=rng.choice([1, 2, 100]), compression=rng.choice(["none", "snappy"]))
    except (pa.ArrowException, ValueError):
        sink = io.BytesIO()
        pq.write_table(pa.table({"messages": [json.dumps(rows, default=str)]}), sink)
    return sink.getvalue()


def _csv(rows, rng):
    text = io.StringIO()
    writer = csv.DictWriter(text, ["prompt", "completion"], extrasaction="ignore", lineterminator=rng.choice(["\n", "\r\n"]))
    writer.writeheader()
    writer.writerows({"prompt": str(row)[:9], **row} if isinstance(row, dict) else {"prompt": row} for row in rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


def _mutate_bytes(content, rng):
    if not content:
        return rng.choice(BYTES)
    at, kind = rng.randrange(len(content)), rng.randrange(9)
    to = min(len(content), at + rng.choice([1, 1, 2, 10, 100]))
    changed = {
        0: lambda: content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :],
        1: lambda: content[:at],
        2: lambda: content[:at] + rng.choice(BYTES) + content[at:],
        3: lambda: content[:at] + content[to:],
        4: lambda: content[:to] + content[at:],
        5: lambda: content[:at] + rng.randbytes(4) + content[at:],
        6: lambda: b"\xef\xbb\xbf" + content,
        7: lambda: content.replace(b"\n", b"\r\n"),
        8: lambda: content[:at] + b"\x00" * rng.choice([1, 4096]) if rng.random() < 0.9 else b"",
    }
    return changed[kind]()


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
