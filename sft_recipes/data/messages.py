"""One message, one call, one tool in the spelling of OpenAI's chat completions; what is wrong with it, in words.

Every function appends its faults to a list and gives the best it can, so that all faults of a row are found together.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from ..recipe import nearest, unknown_name

REASONING = ("reasoning_content", "reasoning", "thinking")
TEXT = {"role", "content", "name", "train"}
FIELDS = {  # what a message of each role may hold; a field that nobody reads would be lost in silence
    "system": TEXT,
    "developer": TEXT,
    "user": TEXT,
    "assistant": {*TEXT, "weight", "tool_calls", "function_call", *REASONING},
    "tool": {*TEXT, "tool_call_id"},
}
SILENT = {"id", "created", "timestamp", "date"}  # exports carry them; they say nothing to the model
AROUND = {"id", "type", "index"}  # what stands around the function of a call
HALF = re.compile("[\ud800-\udfff]")
HALVED = "holds half a character (a lone surrogate)"
KINDS: dict[type, str] = {dict: "an object", list: "a list"}


def unified(message: Any, faults: list[str]) -> dict:
    """A message with its fields checked and in one spelling.

    Args:
        message: in the OpenAI form, older spellings included.
        faults: what is wrong is appended here, one text each.

    Returns:
        a new dict: `role`, `content` as text, and what else the role may hold.
    """
    if not isinstance(message, dict):
        faults.append(f"expected an object, found {type(message).__name__}")
        return {}
    role = message.get("role")
    if role == "function":  # OpenAI's name for it before `tool_calls`
        role = "tool"
    if not isinstance(role, str) or role not in FIELDS:
        faults.append(f"role is {short(role)}, expected one of {', '.join(FIELDS)}{nearest(str(role)[:40], FIELDS)}")
        return {}
    clean = {**_present(message, "content"), "role": role}
    if role == "assistant":
        _respell(clean, faults)
    if not clean.keys() <= FIELDS[role]:
        faults += [_stray(name, role) for name in clean if name not in FIELDS[role] and name not in SILENT]
        clean = {name: value for name, value in clean.items() if name in FIELDS[role]}
    _unify_values(clean, faults)
    if not faults and _is_empty(clean):
        faults.append("an assistant message with neither content nor tool_calls" if role == "assistant" else "no content")
    return clean


def _present(fields: dict, *kept: str) -> dict:
    """The fields that say something: Arrow gives every row the keys of all rows, and exports add empty ones of their own."""
    return {k: v for k, v in fields.items() if v or isinstance(v, (int, float)) or (k in kept and v is not None)}


def _is_empty(message: dict) -> bool:
    if message["role"] != "assistant":
        return "content" not in message
    return not message.get("tool_calls") and not message.get("content", "").strip()


def _respell(message: dict, faults: list[str]) -> None:
    said = [message.pop(name) for name in REASONING if name in message]
    if said:
        message["reasoning_content"] = said[0]
        if any(text != said[0] for text in said):
            faults.append("reasoning_content, reasoning or thinking say different things; keep one")
    if "function_call" in message:
        call = message.pop("function_call")
        if "tool_calls" in message:
            faults.append("both tool_calls and function_call; keep one")
        message.setdefault("tool_calls", [call])


def _stray(name: Any, role: str) -> str:
    owner = next((owner for owner, names in FIELDS.items() if name in names), None)
    if owner:
        return f"{name} on a message of role {role}; it belongs to role {owner}"
    return unknown_name("field", str(name), FIELDS[role])


def _unify_values(message: dict, faults: list[str]) -> None:
    if isinstance(message.get("content"), list):
        message["content"] = "".join(_part(part, i, faults) for i, part in enumerate(message["content"]))
    for name in ("content", "reasoning_content", "name", "tool_call_id"):
        if name in message and (fault := _text_fault(message[name])):
            faults.append(f"{name} {fault}")
    if "tool_calls" in message:
        calls = parsed(message["tool_calls"], "tool_calls", faults, list)
        message["tool_calls"] = [_call(call, f"tool call {i}", faults) for i, call in enumerate(calls)]
    if "train" in message or "weight" in message:
        _unify_learning(message, faults)


def _part(part: Any, i: int, faults: list[str]) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    expected = 'expected {"type": "text", "text": "..."}'
    faults.append(
        f"content part {i}: {expected}" if kind in ("text", None) else f"content part {i} is {short(kind)}; only text is trained here"
    )
    return ""


def _text_fault(text: Any) -> str:
    if not isinstance(text, str):
        return f"is {type(text).__name__}, expected text"
    return "" if text.isascii() or not HALF.search(text) else HALVED


def _halved(tree: Any) -> str:
    """What is wrong with a text somewhere in plain data, keys too; empty where nothing is."""
    text = json.dumps(tree, ensure_ascii=False)
    return "" if text.isascii() or not HALF.search(text) else HALVED


def _unify_learning(message: dict, faults: list[str]) -> None:
    role, train, weight = message["role"], message.get("train"), message.get("weight", 1)
    if train is not None and not isinstance(train, bool):
        faults.append(f"train is {short(train)}, expected true or false")
    elif train and role != "assistant":
        faults.append(f"train is true on a message of role {role}; only assistant messages are learned")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= sys.float_info.max:
        faults.append(f"weight is {short(weight)}, expected a number from 0 up")
    elif weight == 0:
        if train is True:
            faults.append("train is true, but weight is 0; keep one")
        message["train"] = False


def _call(call: Any, place: str, faults: list[str]) -> dict:
    around = _present(call) if isinstance(call, dict) else {}
    function = around.pop("function", None) or {name: around.pop(name) for name in ("name", "arguments") if name in around}
    if not isinstance(call, dict) or not isinstance(function, dict):
        faults.append(f"{place}: expected an object, found {type(function if isinstance(call, dict) else call).__name__}")
        return {}
    function = _present(function)
    stray = [name for name in around if name not in AROUND] + [name for name in function if name not in ("name", "arguments")]
    faults += [f"{place}: {unknown_name('field', str(name), {'name', 'arguments', *AROUND})}" for name in stray]
    name, named = function.get("name"), {"id": around["id"]} if "id" in around else {}
    if not isinstance(name, str):
        faults.append(f"{place} has no name")
    if named and (fault := _text_fault(named["id"])):
        faults.append(f"{place}: id {fault}")
    arguments = parsed(function.get("arguments", {}), f"arguments of {name}", faults, dict)
    if fault := _halved([name, arguments]):
        faults.append(f"{place} {fault}")
    return {"type": "function", **named, "function": {"name": name, "arguments": arguments}}


def unified_tools(tools: Any, faults: list[str]) -> list[dict]:
    """Tools as `{"type": "function", "function": {"name", ...}}`, without nulls.

    Args:
        tools: a list of tools, wrapped or bare, or its JSON text (in which Arrow cannot fill keys with nulls).
        faults: what is wrong is appended here, with the number of the tool.
    """
    return [_tool(tool, i, faults) for i, tool in enumerate(parsed(tools, "`tools`", faults, list))]


def _tool(tool: Any, i: int, faults: list[str]) -> dict:
    if not isinstance(tool, dict):
        faults.append(f"tool {i}: expected an object with a name, found {type(tool).__name__}")
        return {}
    function = tool.get("function") or tool
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        faults.append(f"tool {i} has no name")
        return {}
    if function is tool:
        tool = {"function": {key: value for key, value in tool.items() if key != "type"}}
    if fault := _halved(tool):
        faults.append(f"tool {i} {fault}")
    return {"type": "function", **_without_null(tool)}


def _without_null(schema: Any) -> Any:
    if isinstance(schema, dict):  # a null `default` or `const` says something
        schema = {k: v for k, v in schema.items() if v is not None or k in ("default", "const")}
        return {k: _without_null(v) if isinstance(v, (dict, list)) else v for k, v in schema.items()}
    return [_without_null(item) for item in schema] if isinstance(schema, list) else schema


def parsed(value: Any, what: str, faults: list[str], *kinds: type) -> Any:
    """A value of one of the kinds (`list`, `dict`), or the JSON text of one; an empty one where it is empty or a fault."""
    try:
        if isinstance(value, str):
            value = json.loads(value) if value.strip() else kinds[0]()
    except (ValueError, RecursionError) as error:
        faults.append(f"{what}: not JSON: {error}")
        return kinds[0]()
    if isinstance(value, kinds):
        return value
    faults.append(f"{what}: expected {' or '.join(KINDS[kind] for kind in kinds)}, found {type(value).__name__}")
    return kinds[0]()


def short(value: Any) -> str:
    """A value as it is shown in a fault."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
