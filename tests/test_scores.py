"""Replies are judged by what they say, not by how they are spelt."""

import pytest

from sft_recipes.scores import exact_match, json_valid, numeric_answer, tool_call_exact, tool_call_valid


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


def said(content, stopped=True):
    return {"role": "assistant", "content": content, "stopped": stopped}


@pytest.mark.parametrize(
    ("reply", "expected", "exact"),
    [
        (said("Oslo."), said("Oslo."), 1.0),
        (said(" Oslo.\n"), said("Oslo."), 1.0),
        (said("oslo."), said("Oslo."), 0.0),
        (said("Os lo."), said("Oslo."), 0.0),
        (said("Oslo.", stopped=False), said("Oslo."), 0.0),
        (said(""), {"tool_calls": []}, 1.0),
    ],
)
def test_the_same_text(reply, expected, exact):
    assert exact_match(reply, expected) == exact


@pytest.mark.parametrize(
    ("content", "valid"),
    [
        ('{"a": [1, null, "x"]}', 1.0),
        (' "text"\n', 1.0),
        ("12", 1.0),
        ("9" * 5000, 1.0),
        ('```json\n{"a": 1}\n```', 1.0),
        ("```\n[]\n```", 1.0),
        ("```json\n```", 0.0),
        ('Here: {"a": 1}', 0.0),
        ('{"a": 1} {"b": 2}', 0.0),
        ("{'a': 1}", 0.0),
        ('{"a": NaN}', 0.0),
        ("[" * 100_000, 0.0),
        ("", 0.0),
    ],
)
def test_valid_json(content, valid):
    assert json_valid(said(content), said("{}")) == valid
    assert json_valid(said(content, stopped=False), said("{}")) == 0.0


@pytest.mark.parametrize(
    ("content", "reference", "right"),
    [
        ("3 + 4 = 7\n#### 7", "#### 7", 1.0),
        ("#### 1,234.50", "#### 1234.5", 1.0),
        ("#### $1,000.", "so 1000 in all\n#### 1000", 1.0),
        ("#### 50%", "#### 50", 1.0),
        ("#### -$5", "#### -5", 1.0),
        ("#### $-5", "#### -5", 1.0),
        ("#### \u22125", "#### -5", 1.0),
        ("#### +5", "#### 5", 1.0),
        ("#### 5", "#### -5", 0.0),
        ("#### 1/2", "#### .5", 1.0),
        ("#### 0.1", "#### 0.10000000000000001", 0.0),
        ("#### 3 apples", "#### 3", 1.0),
        ("#### 6\nno, wait\n#### 7", "#### 7", 1.0),
        ("####\n7", "#### 7", 1.0),
        ("#### none\n7", "#### 7", 0.0),
        ("The answer is 7.", "#### 7", 0.0),
        ("#### 7", "The answer, after 3 steps, is 7.", 1.0),
        ("#### 7", "no number", 0.0),
        ("#### none", "no number", 0.0),
        ("#### 1/0", "#### 1/0", 0.0),
        ("#### " + "9" * 5000, "#### 9", 0.0),
    ],
)
def test_the_number_after_the_mark(content, reference, right):
    assert numeric_answer(said(content), said(reference)) == right
    assert numeric_answer(said(content, stopped=False), said(reference)) == 0.0
