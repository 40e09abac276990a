"""Tool calls: what they say, and whether they fit their tool."""

from __future__ import annotations

import json
from typing import Any

JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def _calls(message: dict) -> list[dict[str, Any]]:
    return [call["function"] for call in message.get("tool_calls") or []]


def tool_call_exact(reply: dict, expected: dict) -> float:
    """Whether the turn stopped and makes the same calls: names and arguments, parallel calls in any order.

    Where the reference calls nothing, a turn that stops and calls nothing is exact.
    """

    def canonical(message: dict) -> list[str]:
        return sorted(json.dumps([call["name"], call["arguments"]], sort_keys=True) for call in _calls(message))

    return float(reply["stopped"] and canonical(reply) == canonical(expected))


def tool_call_valid(reply: dict, expected: dict) -> float:
    """Whether the turn stopped, calls something where the reference does, and each call fits its tool's JSON schema."""
    schemas = {tool.get("function", tool)["name"]: tool.get("function", tool) for tool in expected["tools"]}
    wanted, made = bool(_calls(expected)), _calls(reply)
    fits = all(call["name"] in schemas and _fits(call["arguments"], schemas[call["name"]]) for call in made)
    return float(reply["stopped"] and fits and (bool(made) or not wanted))


def _fits(arguments: Any, schema: dict) -> bool:
    parameters = schema.get("parameters") or {}
    properties = parameters.get("properties") or {}
    if not isinstance(arguments, dict) or not set(parameters.get("required") or []) <= arguments.keys() <= properties.keys():
        return False
    return all(_of_type(value, properties[key]) for key, value in arguments.items())


def _of_type(value: Any, schema: dict) -> bool:
    if "enum" in schema and value not in schema["enum"]:
        return False
    names = schema.get("type", [])
    allowed = [t for name in ([names] if isinstance(names, str) else names) for t in JSON_TYPES.get(name, ())]
    # JSON's `true` is no number, although Python's is.
    return not allowed or (isinstance(value, tuple(allowed)) and (not isinstance(value, bool) or bool in allowed))
