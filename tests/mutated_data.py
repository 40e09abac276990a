"""Mutated data files: rows in every form that is read, mutated as trees, then as text, then as bytes.

They are written as JSONL, a JSON list, Parquet or CSV. A case is its seed: the same number gives the same bytes.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

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
