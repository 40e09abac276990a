"""Tool calls are judged by what they say, not by how they are spelt."""

import pytest

from sft_recipes.scores import tool_call_exact, tool_call_valid


def message(*calls, stopped=True, tools=()):
    called = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    return {"role": "assistant", "content": "", "tool_calls": called, "stopped": stopped, "tools": list(tools)}


@pytest.mark.parametrize(
    ("reply", "expected", "exact"),
    [
        (message(("f", {"a": 1, "b": 2})), message(("f", {"b": 2, "a": 1})), 1.0),
        (message(("f", {"a": 1}), ("g", {})), message(("g", {}), ("f", {"a": 1})), 1.0),
        (message(("f", {"a": 1}), ("f", {"a": 1})), message(("f", {"a": 1})), 0.0),
        (message(("f", {"a": "1"})), message(("f", {"a": 1})), 0.0),
        (message(("f", {"a": 1}), stopped=False), message(("f", {"a": 1})), 0.0),
        (message(), message(), 1.0),
        (message(stopped=False), message(), 0.0),
        (message(("f", {})), message(), 0.0),
    ],
)
def test_exact(reply, expected, exact):
    assert tool_call_exact(reply, expected) == exact


TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {"n": {"type": "integer"}, "s": {"type": "string", "enum": ["x", "y"]}},
            "required": ["n"],
        },
    },
}


@pytest.mark.parametrize(
    ("arguments", "valid"),
    [
        ({"n": 1}, 1.0),
        ({"n": 1, "s": "x"}, 1.0),
        ({}, 0.0),
        ({"n": "1"}, 0.0),
        ({"n": True}, 0.0),
        ({"n": 1, "s": "z"}, 0.0),
        ({"n": 1, "q": 1}, 0.0),
        ([], 0.0),
    ],
)
def test_valid(arguments, valid):
    assert tool_call_valid(message(("f", arguments)), message(("f", {"n": 2}), tools=[TOOL])) == valid


def test_a_turn_that_should_call_and_does_not_is_not_valid():
    assert tool_call_valid(message(), message(("f", {"n": 2}), tools=[TOOL])) == 0.0


def test_an_unknown_tool_is_not_valid():
    assert tool_call_valid(message(("g", {"n": 1})), message(("f", {"n": 2}), tools=[TOOL])) == 0.0
