"""The Berkeley Function-Calling Leaderboard's single-turn parts as conversations.

    .venv/bin/python -m benchmarks.bfcl path/to/bfcl > bfcl.jsonl
    make train RECIPE=gemma-tools DATA=bfcl.jsonl ARGS="--max_steps 20"

Each question offers its functions; the reference calls come from the accepted answers, the first accepted value of every
argument, leaving out those that may be left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PARTS = ("simple_python", "multiple", "parallel")
JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array"}


def conversations(folder: Path) -> Iterator[dict[str, Any]]:
    """Every question of `simple_python`, `multiple` and `parallel` with its reference calls, in the OpenAI form."""
    for part in PARTS:
        questions = [json.loads(line) for line in (folder / f"{part}.jsonl").read_text().splitlines()]
        answers = {a["id"]: a["ground_truth"] for a in map(json.loads, (folder / f"{part}.answers.jsonl").read_text().splitlines())}
        for question in questions:
            calls = [_call(name, accepted) for answer in answers[question["id"]] for name, accepted in answer.items()]
            tools = [{"type": "function", "function": _json_schema(function)} for function in question["function"]]
            yield {"messages": [*question["question"][0], {"role": "assistant", "tool_calls": calls}], "tools": tools}


def _call(name: str, accepted: dict[str, list[Any]]) -> dict[str, Any]:
    arguments = {key: _first(values[0]) for key, values in accepted.items() if "" not in values}
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def _first(value: Any) -> Any:
    """A nested object's fields are lists of accepted values in turn."""
    if isinstance(value, dict):
        return {key: _first(inner[0]) if isinstance(inner, list) else inner for key, inner in value.items()}
    return value


def _json_schema(schema: Any) -> Any:
    """BFCL's own type names as JSON Schema's."""
    if isinstance(schema, dict):
        return {k: JSON_TYPES.get(v, v) if k == "type" and isinstance(v, str) else _json_schema(v) for k, v in schema.items()}
    return [_json_schema(item) for item in schema] if isinstance(schema, list) else schema


if __name__ == "__main__":
    for conversation in conversations(Path(sys.argv[1])):
        print(json.dumps(conversation))
