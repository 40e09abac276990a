"""Sources to conversations: read, convert, check the shape, split. Every fault names its file and line.

A conversation is plain data: `{"messages": [...], "tools": [...], "source": "file:line"}` in the OpenAI chat form.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from .recipe import RecipeError, Source, nearest

Conversation = dict[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")
SHOWN = 20  # faults printed before the rest are only counted


def load(sources: Iterable[Source], convert: Callable[[dict], dict]) -> list[Conversation]:
    """Read every source and convert every row.

    Args:
        sources: files or datasets, read in order.
        convert: the recipe's `conversation` hook: a row as its source has it, to `{"messages", "tools"}`.

    Raises:
        RecipeError: every fault of every row at once (the first 20 in words), each with file and line.
    """
    faults: list[str] = []
    conversations = [c for source in sources for c in _converted(read(source, faults), convert, faults)]
    raise_faults(faults)
    return conversations


def load_rows(rows: Iterable[dict], name: str, convert: Callable[[dict], dict]) -> list[Conversation]:
    """The same for rows in memory (a list or a `datasets.Dataset`), which are called `name:0`, `name:1`, ..."""
    faults: list[str] = []
    clean = (lambda row: row) if isinstance(rows, list) else _without_none
    conversations = list(_converted(((clean(row), f"{name}:{i}") for i, row in enumerate(rows)), convert, faults))
    raise_faults(faults)
    return conversations


def raise_faults(faults: list[str]) -> None:
    """Raise all faults as one error, the first 20 in words; nothing where there are none."""
    if faults:
        more = [f"... and {len(faults) - SHOWN} more faults"] if len(faults) > SHOWN else []
        raise RecipeError(*faults[:SHOWN], *more)


def read(source: Source, faults: list[str]) -> Iterator[tuple[dict, str]]:
    """A source's rows, each with where it stands (`file:line`, or `dataset:row`); faults are appended, not raised."""
    if Path(source.path).suffix in (".jsonl", ".json"):
        yield from _read_jsonl(Path(source.path), faults)
    else:
        yield from _read_dataset(source, faults)


def _read_jsonl(file: Path, faults: list[str]) -> Iterator[tuple[dict, str]]:
    if not file.is_file():
        here = file.parent.glob("*.jsonl") if file.parent.is_dir() else ()
        faults.append(f"{file}: no such file{nearest(file.name, [f.name for f in here])}")
        return
    empty, name = True, _shown(file)
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            empty = False
            try:
                yield json.loads(line), f"{name}:{number}"
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                faults.append(f"{name}:{number}: not JSON: {error}")
    if empty:
        faults.append(f"{name}: the file is empty; it needs one conversation a line")


def _shown(file: Path) -> str:
    """A file's path as a person would type it from here."""
    here = Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file)


def _read_dataset(source: Source, faults: list[str]) -> Iterator[tuple[dict, str]]:
    import datasets

    try:
        rows = datasets.load_dataset(source.path, source.name, split=source.split)
    except Exception as error:  # the hub, the network and every file format raise their own
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        faults.append(f"{source}: cannot be loaded: {type(error).__name__}: {reason}")
        return
    for number, row in enumerate(rows):
        yield _without_none(row), f"{source}:{number}"


def _converted(rows: Iterable[tuple[Any, str]], convert: Callable[[dict], dict], faults: list[str]) -> Iterator[Conversation]:
    for row, where in rows:
        if not isinstance(row, dict):
            faults.append(f"{where}: expected an object with `messages`, found {type(row).__name__}")
            continue
        try:
            conversation = normalized(convert(row), where)
        except RecipeError as error:
            faults += [fault if fault.startswith(where) else f"{where}: {fault}" for fault in error.faults]
            continue
        yield conversation


def normalized(row: dict, where: str) -> Conversation:
    """A conversation with its shape checked and its spellings unified.

    Tools may come as JSON text, and so may call arguments (Qwen's template would encode those twice). Fields of a message
    that are `None` vanish; inside JSON arguments a `null` stays what it is.

    Raises:
        RecipeError: every fault of the row, with its place and message number.
    """
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        found = ", ".join(sorted(row)) or "nothing"
        raise RecipeError(f"{where}: no `messages` list (found: {found})")
    messages = [_present(message) for message in messages]
    faults = [f"{where}, message {i}: {fault}" for i, message in enumerate(messages) for fault in _message_faults(message)]
    if not faults and not any(message["role"] == "assistant" for message in messages):
        faults = [f"{where}: no assistant message, so nothing to learn"]
    if faults:
        raise RecipeError(*faults)
    tools = row.get("tools") or []
    if isinstance(tools, str):
        tools = _json(tools, f"{where}: `tools`")
    return {"messages": [_with_parsed_calls(m, where) for m in messages], "tools": tools, "source": where}


def _present(fields: Any) -> Any:
    return {key: value for key, value in fields.items() if value is not None} if isinstance(fields, dict) else fields


def _message_faults(message: Any) -> list[str]:
    if not isinstance(message, dict):
        return [f"expected an object, found {type(message).__name__}"]
    role = message.get("role")
    if role not in ROLES:
        return [f"role is {role!r}, expected one of {', '.join(ROLES)}{nearest(str(role), ROLES)}"]
    if not isinstance(message.get("content", ""), (str, list)):
        return [f"content is {type(message['content']).__name__}, expected text"]
    if role == "assistant" and not message.get("content") and not message.get("tool_calls"):
        return ["an assistant message with neither content nor tool_calls"]
    return []


def _with_parsed_calls(message: dict, where: str) -> dict:
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = _present(call.get("function", call))
        if isinstance(function.get("arguments"), str):
            function["arguments"] = _json(function["arguments"], f"{where}: arguments of {function.get('name')}")
        calls.append({"type": "function", **{k: v for k, v in call.items() if k == "id"}, "function": function})
    return {**message, "tool_calls": calls}


def _without_none(value: Any) -> Any:
    """Arrow gives every row the keys of all rows, filled with `None`; templates would print them."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RecipeError(f"{what}: not JSON: {error}") from error


def fingerprint(conversation: Conversation) -> str:
    """A hash of what a conversation says, wherever it stands."""
    text = json.dumps([conversation["messages"], conversation["tools"]], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def split(conversations: list[Conversation], held_out: int) -> tuple[list[Conversation], list[Conversation]]:
    """Hold out `held_out` conversations (at most a fifth), chosen by their content.

    The choice depends on neither order nor seed, and equal conversations go to the same side.

    Returns:
        the conversations to train on and the ones held out, each in their original order.
    """
    prints = [fingerprint(conversation) for conversation in conversations]
    chosen = set(sorted(set(prints))[: min(held_out, len(conversations) // 5)])
    train = [c for c, p in zip(conversations, prints, strict=True) if p not in chosen]
    return train, [c for c, p in zip(conversations, prints, strict=True) if p in chosen]
