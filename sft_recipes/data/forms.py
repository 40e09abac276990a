"""A row in any form that people have, to a checked conversation in the OpenAI chat form.

The forms, in the order in which they are looked for; other columns are ignored, and a column that is null counts as absent:

    messages                            OpenAI chat completions, also with the older `function_call` and role `function`
    conversations (or conversation)     ShareGPT turns `{"from", "value"}`, as FastChat and LLaMA-Factory write them
    prompt + completion                 TRL: two texts, or two lists of messages of which only the completion is learned
    instruction + output (or response)  Stanford Alpaca: `input` (Dolly: `context`) follows the instruction after an empty
                                        line, without Alpaca's "### Instruction:" frame, as the chat template is what is
                                        served; `history` holds [user, assistant] pairs, learned like the rest

Each may come with `tools` (or OpenAI's older `functions`), with a text `system`, and with `tests`, which the model never sees:
`score` gets them as they are, with the reference of every learned turn (`scores.python_passes` runs them).
"""

from __future__ import annotations

from typing import Any

from ..recipe import RecipeError, nearest
from .messages import parsed, short, unified, unified_tools

Conversation = dict[str, Any]
Placed = tuple[str, Any]  # a message, after what a person would call its place in the row

ACCEPTED = ("messages", "conversations", "prompt", "completion", "instruction", "output")
KNOWN = {
    *ACCEPTED,
    "conversation",
    "input",
    "context",
    "response",
    "system",
    "history",
    "tools",
    "functions",
    "tests",
    "chosen",
    "rejected",
}
SPEAKERS = {
    name: role
    for role, names in {
        "system": "system",
        "developer": "developer",
        "user": "human user",
        "assistant": "gpt assistant model chatgpt bard bing function_call",
        "tool": "tool function observation",
    }.items()
    for name in names.split()
}


def normalized(row: dict, where: str) -> Conversation:
    """A conversation with its shape checked and its spellings unified; the row itself stays as it is.

    Content becomes one text (text parts are joined with nothing between them), the arguments of calls become mappings, tools
    become `{"type": "function", "function": {...}}`, `reasoning` and `thinking` become `reasoning_content`. `train` and
    `weight` stay on their message; weight 0 adds `"train": false`. Fields that are null vanish, but not inside arguments.

    Args:
        row: in one of the forms above.
        where: its file and line, for the faults.

    Returns:
        `{"messages": [...], "tools": [...], "source": where}`, and `"tests"` where the row has some.

    Raises:
        RecipeError: every fault of the row, each with `where` and the message it is in.
    """
    if not isinstance(row, dict):
        raise RecipeError(f"{where}: expected an object, found {type(row).__name__}")
    faults: list[str] = []
    turns = [(place, _placed(message, place, faults)) for place, message in _turns(row, faults)]
    if not faults:  # else they would only repeat what is already said
        faults += _faults_between(turns)
    tools = unified_tools(row.get("tools") or row.get("functions") or [], faults)
    if faults:
        raise RecipeError(*(f"{where}{fault if fault[0] == ',' else ': ' + fault}" for fault in faults))
    tests = {"tests": row["tests"]} if row.get("tests") else {}
    return {"messages": [message for _, message in turns], "tools": tools, "source": where, **tests}


def _placed(message: Any, place: str, faults: list[str]) -> dict:
    found: list[str] = []
    clean = unified(message, found)
    faults += [f", {place}: {fault}" for fault in found]
    return clean


def _faults_between(turns: list[Placed]) -> list[str]:
    faults, ids = [], dict[str, None]()
    for place, message in turns:
        ids.update((call["id"], None) for call in message.get("tool_calls", ()) if "id" in call)
        answered = message.get("tool_call_id")
        if answered is not None and answered not in ids:
            faults.append(f", {place}: tool_call_id {short(answered)} answers no earlier call (ids so far: {', '.join(ids) or 'none'})")
    if not any(message["role"] == "assistant" for _, message in turns):
        faults.append("no assistant message, so nothing to learn")
    return faults


def _turns(row: dict, faults: list[str]) -> list[Placed]:
    shared = "conversations" if row.get("conversations") is not None else "conversation"
    if row.get("messages") is not None:
        turns = _listed(row["messages"], "messages", faults)
    elif row.get(shared) is not None:
        spoken = ((place, _spoken(turn, place, faults)) for place, turn in _listed(row[shared], shared, faults))
        turns = [(place, message) for place, message in spoken if message is not None]
    elif row.get("prompt") is not None and row.get("completion") is not None:
        turns = [(place, _as_context(m)) for place, m in _said(row, "prompt", "user", faults)]
        turns += _said(row, "completion", "assistant", faults)
    elif row.get("instruction") is not None and _output(row) is not None:
        turns = _instructed(row, faults)
    else:
        faults.append(_no_form(row))
        return []
    return _with_system(row.get("system"), turns, faults)


def _listed(value: Any, name: str, faults: list[str], expected: str = "a list of messages", lead: str = "") -> list[Placed]:
    if isinstance(value, list) and value:
        return [(f"{lead}message {i}", message) for i, message in enumerate(value)]
    faults.append(f"`{name}` is empty" if value == [] else f"`{name}`: expected {expected}, found {type(value).__name__}")
    return []


def _spoken(turn: Any, place: str, faults: list[str]) -> dict | None:
    """A ShareGPT turn as a message; one that already uses `role` and `content` is welcome too."""
    if not isinstance(turn, dict):
        faults.append(f", {place}: expected an object, found {type(turn).__name__}")
        return None
    message = {name: value for name, value in turn.items() if value is not None}
    spelt = "from" if "from" in message else "role"
    for old, new in (("from", "role"), ("value", "content")):
        if old in message and new in message:
            faults.append(f", {place}: both {old} and {new}; keep one")
        if old in message:
            message[new] = message.pop(old)
    who = message.get("role")
    if not isinstance(who, str) or who not in SPEAKERS:
        hint = nearest(str(who)[:40], SPEAKERS)
        faults.append(f", {place}: {spelt} is {short(who)}, expected one of {', '.join(SPEAKERS)}{hint}")
        return None
    message["role"] = SPEAKERS[who]
    return _with_calls(message, place, faults) if who == "function_call" else message


def _with_calls(message: dict, place: str, faults: list[str]) -> dict | None:
    """LLaMA-Factory writes an assistant's calls as a turn of their own, in JSON: one call, or a list of them."""
    found: list[str] = []
    calls = parsed(message.pop("content", None), f", {place}: function_call", found, list, dict)
    faults += found
    return None if found else {**message, "tool_calls": calls if isinstance(calls, list) else [calls]}


def _said(row: dict, name: str, role: str, faults: list[str]) -> list[Placed]:
    if isinstance(row[name], str):
        return [(name, {"role": role, "content": row[name]})]
    return _listed(row[name], name, faults, "a text or a list of messages", f"{name} ")


def _as_context(message: Any) -> Any:
    if isinstance(message, dict) and message.get("role") == "assistant" and message.get("train") is None:
        return {**message, "train": False}
    return message


def _instructed(row: dict, faults: list[str]) -> list[Placed]:
    parts = {name: row.get(name) for name in ("instruction", "input" if "input" in row else "context")}
    parts = {name: part for name, part in parts.items() if part is not None and part != ""}
    faults += [f"`{name}` is {type(part).__name__}, expected text" for name, part in parts.items() if not isinstance(part, str)]
    turns: list[Placed] = []
    for i, pair in enumerate(parsed(row.get("history") or [], "`history`", faults, list)):
        if isinstance(pair, list) and len(pair) == 2:
            turns += [(f"history {i}", {"role": role, "content": text}) for role, text in zip(("user", "assistant"), pair, strict=True)]
        else:
            faults.append(f"history {i}: expected [user, assistant]")
    asked = {"role": "user", "content": "\n\n".join(map(str, parts.values()))}
    return [*turns, ("instruction", asked), ("output", {"role": "assistant", "content": _output(row)})]


def _output(row: dict) -> Any:
    return row["output"] if row.get("output") is not None else row.get("response")


def _with_system(system: Any, turns: list[Placed], faults: list[str]) -> list[Placed]:
    if not system:
        return turns
    first = turns[0][1] if turns else None
    if isinstance(first, dict) and first.get("role") in ("system", "developer"):
        if first.get("content") != system:
            faults.append("`system` and the first message say different things; keep one")
        return turns
    return [("system", {"role": "system", "content": system}), *turns]


def _no_form(row: dict) -> str:
    keys = sorted(str(key) for key, value in row.items() if value is not None)
    pairs = ((key, name) for name in ACCEPTED if name not in keys for key in keys if key not in KNOWN)
    if near := next(((key, hint) for key, name in pairs if (hint := nearest(key, [name]))), None):
        keys.remove(near[0])
        keys.append("".join(near))
    found = ", ".join(keys) or "nothing"
    return f"no `messages`, `conversations`, `prompt` with `completion`, or `instruction` with `output` (found: {found})"
