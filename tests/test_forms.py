"""Every form in and the exact conversation out, every fault in words, and a fuzz that no row gets past."""

import copy
import json
import random

import pytest

from sft_recipes import RecipeError, supervise
from sft_recipes.data.forms import normalized
from sft_recipes.weights import load_tokenizer

USER = {"role": "user", "content": "hi"}
REPLY = {"role": "assistant", "content": "hello"}
SYSTEM = {"role": "system", "content": "Be kind."}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}
F = {"name": "f", "arguments": {"a": 1}}
CALL = {"type": "function", "function": F}
CALLING = {"role": "assistant", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "2"}


def messages(*turns):
    return {"messages": list(turns)}


def shared(*turns, **columns):
    return {"conversations": [{"from": who, "value": text} for who, text in turns], **columns}


def faults_of(row):
    with pytest.raises(RecipeError) as caught:
        normalized(row, "here:1")
    return caught.value.faults


FORMS = {
    "openai": (messages(SYSTEM, USER, REPLY), [SYSTEM, USER, REPLY]),
    "openai developer": (messages({**SYSTEM, "role": "developer"}, USER, REPLY), [{**SYSTEM, "role": "developer"}, USER, REPLY]),
    "text parts": (
        messages({"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}, REPLY),
        [USER, REPLY],
    ),
    "calls with and without wrapper, arguments as text": (
        messages(USER, {"role": "assistant", "content": None, "tool_calls": [F, {"function": {"name": "f", "arguments": '{"a": 1}'}}]}),
        [USER, {"role": "assistant", "tool_calls": [CALL, CALL]}],
    ),
    "calls without arguments": (
        messages(USER, {"role": "assistant", "tool_calls": [{"name": "f"}, {"name": "f", "arguments": ""}]}),
        [USER, {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}] * 2}],
    ),
    "ids and names": (
        messages(
            USER,
            {"role": "assistant", "tool_calls": [{"id": "c0", "index": 0, **CALL}]},
            {**RESULT, "tool_call_id": "c0", "name": "f"},
            REPLY,
        ),
        [USER, {"role": "assistant", "tool_calls": [{"id": "c0", **CALL}]}, {**RESULT, "tool_call_id": "c0", "name": "f"}, REPLY],
    ),
    "a null inside arguments stays": (
        messages(USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": None, "b": [None]}}]}),
        [
            USER,
            {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": None, "b": [None]}}}]},
        ],
    ),
    "functions before tools": (
        messages(
            USER, {"role": "assistant", "content": None, "function_call": F}, {"role": "function", "name": "f", "content": "2"}, REPLY
        ),
        [USER, CALLING, {**RESULT, "name": "f"}, REPLY],
    ),
    "reasoning_content": (messages(USER, {**REPLY, "reasoning_content": "so"}), [USER, {**REPLY, "reasoning_content": "so"}]),
    "reasoning": (messages(USER, {**REPLY, "reasoning": "so"}), [USER, {**REPLY, "reasoning_content": "so"}]),
    "thinking": (messages(USER, {**REPLY, "thinking": "so", "reasoning": "so"}), [USER, {**REPLY, "reasoning_content": "so"}]),
    "train and weight travel": (
        messages(USER, {**REPLY, "train": True}, {**REPLY, "train": False, "weight": 1}, {**REPLY, "weight": 0.5}),
        [USER, {**REPLY, "train": True}, {**REPLY, "train": False, "weight": 1}, {**REPLY, "weight": 0.5}],
    ),
    "weight 0 is context": (messages(USER, {**REPLY, "weight": 0}), [USER, {**REPLY, "weight": 0, "train": False}]),
    "nothing to learn is counted elsewhere": (messages(USER, {**REPLY, "train": False}), [USER, {**REPLY, "train": False}]),
    "fields that say nothing": (
        messages(
            {**USER, "id": "m1", "timestamp": 5, "date": "May", "tool_calls": [], "weight": None},
            {**REPLY, "created": 7, "refusal": None, "annotations": [], "audio": None, "name": "", "tool_call_id": ""},
        ),
        [USER, REPLY],
    ),
    "messages beside raw text": ({**messages(USER, REPLY), "prompt": "hi", "completion": "x", "prompt_id": "1"}, [USER, REPLY]),
    "messages null": ({"messages": None, "prompt": "hi", "completion": "hello", "text": "x"}, [USER, REPLY]),
    "system beside messages": ({**messages(USER, REPLY), "system": "Be kind."}, [SYSTEM, USER, REPLY]),
    "the same system twice": ({**messages(SYSTEM, USER, REPLY), "system": "Be kind."}, [SYSTEM, USER, REPLY]),
    "prompt and completion": ({"prompt": "hi", "completion": "hello"}, [USER, REPLY]),
    "prompt and completion of messages": (
        {"prompt": [USER, REPLY, {**CALLING, "train": None}, RESULT, USER], "completion": [CALLING, RESULT, REPLY]},
        [USER, {**REPLY, "train": False}, {**CALLING, "train": False}, RESULT, USER, CALLING, RESULT, REPLY],
    ),
    "sharegpt": (shared(("system", "Be kind."), ("human", "hi"), ("gpt", "hello")), [SYSTEM, USER, REPLY]),
    "sharegpt other names": (
        shared(("user", "hi"), *((who, "hello") for who in ("assistant", "model", "chatgpt", "bard", "bing")), ("tool", "2")),
        [USER, *[REPLY] * 5, RESULT],
    ),
    "sharegpt conversation and system": (
        {"conversation": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}], "system": "Be kind."},
        [SYSTEM, USER, REPLY],
    ),
    "llama-factory calls": (
        shared(
            ("human", "hi"), ("function_call", json.dumps(F)), ("observation", "2"), ("function_call", json.dumps([F, F])), ("gpt", "hello")
        ),
        [USER, CALLING, RESULT, {"role": "assistant", "tool_calls": [CALL, CALL]}, REPLY],
    ),
    "sharegpt train and weight": (
        {
            "conversations": [
                {"from": "human", "value": "hi"},
                {"from": "gpt", "value": "hello", "train": False},
                {"from": "gpt", "value": "hello", "weight": 2.0},
            ]
        },
        [USER, {**REPLY, "train": False}, {**REPLY, "weight": 2.0}],
    ),
    "sharegpt with roles": ({"conversations": [USER, {"role": "gpt", "content": "hello", "from": None}]}, [USER, REPLY]),
    "alpaca": ({"instruction": "hi", "input": "", "output": "hello", "text": "..."}, [USER, REPLY]),
    "alpaca input": (
        {"instruction": "Add.", "input": "1 1", "response": "2", "system": "Be kind."},
        [SYSTEM, {"role": "user", "content": "Add.\n\n1 1"}, {"role": "assistant", "content": "2"}],
    ),
    "alpaca history is learned": (
        {"instruction": "Add.", "output": "2", "history": [["hi", "hello"], ["hi", "hello"]]},
        [USER, REPLY, USER, REPLY, {"role": "user", "content": "Add."}, {"role": "assistant", "content": "2"}],
    ),
    "dolly": (
        {"instruction": "Who?", "context": "Ann ran.", "response": "Ann.", "category": "qa"},
        [{"role": "user", "content": "Who?\n\nAnn ran."}, {"role": "assistant", "content": "Ann."}],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_becomes_openai_messages(form):
    row, expected = FORMS[form]
    before = copy.deepcopy(row)
    assert normalized(row, "here:1") == {"messages": expected, "tools": [], "source": "here:1"}
    assert row == before
    assert normalized(messages(*expected), "here:1")["messages"] == expected  # what is unified stays as it is


BARE = {**TOOL["function"]}
TOOLS = {
    "list": ([TOOL], [TOOL]),
    "text": (json.dumps([TOOL]), [TOOL]),
    "bare": ([BARE], [TOOL]),
    "bare with a type, as text": (json.dumps([{"type": "function", **BARE}]), [TOOL]),
    "without a type": ([{"function": BARE}], [TOOL]),
    "filled with nulls": ([{**TOOL, "name": None, "function": {**BARE, "strict": None, "description": None}}], [TOOL]),
    "nulls that say something": (
        [{"name": "f", "parameters": {"properties": {"a": {"default": None, "enum": [1, None], "title": None}}}}],
        [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"default": None, "enum": [1, None]}}}}}],
    ),
    "null": (None, []),
    "empty text": ("", []),
    "text of an empty list": ("[]", []),
}


@pytest.mark.parametrize("form", TOOLS)
def test_tools_in_each_form(form):
    tools, expected = TOOLS[form]
    assert normalized({**messages(USER, REPLY), "tools": tools}, "here:1")["tools"] == expected


def test_functions_are_tools():
    assert normalized({**messages(USER, REPLY), "functions": [BARE], "tools": None}, "here:1")["tools"] == [TOOL]


ROLES = "expected one of system, developer, user, assistant, tool"
SPEAKERS = "system, developer, human, user, gpt, assistant, model, chatgpt, bard, bing, function_call, tool, function, observation"
EMPTY = "an assistant message with neither content nor tool_calls"
ACCEPTED = "no `messages`, `conversations`, `prompt` with `completion`, or `instruction` with `output`"


def calling(*calls):
    return messages(USER, {"role": "assistant", "tool_calls": list(calls)})


FAULTS = [
    # which form
    ({"text": "x"}, [f": {ACCEPTED} (found: text)"]),
    ({}, [f": {ACCEPTED} (found: nothing)"]),
    ({"message": [USER, REPLY], "id": 1}, [f": {ACCEPTED} (found: id, message, did you mean 'messages'?)"]),
    ({"prompt": "x", "chosen": "y"}, [f": {ACCEPTED} (found: chosen, prompt)"]),
    ({"question": 1, "mesages": 2, "messages": None}, [f": {ACCEPTED} (found: question, mesages, did you mean 'messages'?)"]),
    ({"promt": "x", "completion": "y"}, [f": {ACCEPTED} (found: completion, promt, did you mean 'prompt'?)"]),
    ({"instruction": "x", "input": "y", 5: "z"}, [f": {ACCEPTED} (found: 5, input, instruction)"]),
    (messages(), [": `messages` is empty"]),
    ({"messages": "hi"}, [": `messages`: expected a list of messages, found str"]),
    ({"conversations": {"from": "human"}}, [": `conversations`: expected a list of messages, found dict"]),
    ({"prompt": [USER], "completion": []}, [": `completion` is empty"]),
    ({"prompt": 5, "completion": "x"}, [": `prompt`: expected a text or a list of messages, found int"]),
    (messages(USER), [": no assistant message, so nothing to learn"]),
    ({**messages(SYSTEM, USER, REPLY), "system": "Be rude."}, [": `system` and the first message say different things; keep one"]),
    # messages
    (
        messages({"role": "usr", "content": "x"}, "text", {"role": ["user"]}),
        [
            f", message 0: role is 'usr', {ROLES}, did you mean 'user'?",
            ", message 1: expected an object, found str",
            f", message 2: role is ['user'], {ROLES}, did you mean 'user'?",
        ],
    ),
    (
        messages({"role": "user", "contnet": "x"}, {**REPLY, "zzz": 1}),
        [", message 0: unknown field 'contnet', did you mean 'content'?", ", message 1: unknown field 'zzz'"],
    ),
    (
        messages({**USER, "weight": 1}, {**REPLY, "tool_call_id": "c"}),
        [
            ", message 0: weight on a message of role user; it belongs to role assistant",
            ", message 1: tool_call_id on a message of role assistant; it belongs to role tool",
        ],
    ),
    (messages({"role": "user", "content": 5}, REPLY), [", message 0: content is int, expected text"]),
    (messages({"role": "user", "content": None}, REPLY), [", message 0: no content"]),
    (
        messages({"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}]}, REPLY),
        [", message 0: content part 1 is 'image_url'; only text is trained here"],
    ),
    (
        messages({"role": "user", "content": ["x", {"type": "text", "text": None}]}, REPLY),
        [f', message 0: content part {i}: expected {{"type": "text", "text": "..."}}' for i in (0, 1)],
    ),
    (messages(USER, {"role": "assistant", "content": "a\ud800"}), [", message 1: content holds half a character (a lone surrogate)"]),
    (messages({**USER, "name": 5}, REPLY), [", message 0: name is int, expected text"]),
    *[
        (messages(USER, {"role": "assistant", **said}), [f", message 1: {EMPTY}"])
        for said in ({"content": ""}, {"content": " \n"}, {"content": [], "tool_calls": []}, {"reasoning": "so"}, {})
    ],
    (
        messages(USER, {**REPLY, "thinking": "a", "reasoning_content": "b"}),
        [", message 1: reasoning_content, reasoning or thinking say different things; keep one"],
    ),
    (messages(USER, {**REPLY, "reasoning": 5}), [", message 1: reasoning_content is int, expected text"]),
    (messages(USER, {**CALLING, "function_call": F}), [", message 1: both tool_calls and function_call; keep one"]),
    # what is learned
    (messages(USER, {**REPLY, "train": "no"}), [", message 1: train is 'no', expected true or false"]),
    (messages(USER, {**REPLY, "train": 0}), [", message 1: train is 0, expected true or false"]),
    *[
        (messages(USER, {**REPLY, "weight": weight}), [f", message 1: weight is {weight!r}, expected a number from 0 up"])
        for weight in (-1, float("nan"), float("inf"), "1", True)
    ],
    (messages(USER, {**REPLY, "weight": 10**400}), [f", message 1: weight is 1{'0' * 59}..., expected a number from 0 up"]),
    (messages(USER, {**REPLY, "weight": 0, "train": True}), [", message 1: train is true, but weight is 0; keep one"]),
    (
        messages({**USER, "train": True}, REPLY),
        [", message 0: train is true on a message of role user; only assistant messages are learned"],
    ),
    # calls
    (messages(USER, {"role": "assistant", "tool_calls": F}), [", message 1: tool_calls: expected a list, found dict"]),
    (
        calling("f", {"id": "c"}, {"function": "f"}, {"function": {"name": 5}}),
        [
            ", message 1: tool call 0: expected an object, found str",
            ", message 1: tool call 1 has no name",
            ", message 1: tool call 2: expected an object, found str",
            ", message 1: tool call 3 has no name",
        ],
    ),
    (calling({**F, "argumnets": "{}"}), [", message 1: tool call 0: unknown field 'argumnets', did you mean 'arguments'?"]),
    (calling({"function": {**F, "args": [1]}}), [", message 1: tool call 0: unknown field 'args', did you mean 'arguments'?"]),
    (calling({"id": 5, **CALL}), [", message 1: tool call 0: id is int, expected text"]),
    (calling({"name": "f", "arguments": "[1]"}), [", message 1: arguments of f: expected an object, found list"]),
    (calling({"name": "f", "arguments": "null"}), [", message 1: arguments of f: expected an object, found NoneType"]),
    (calling({"name": "f", "arguments": 5}), [", message 1: arguments of f: expected an object, found int"]),
    (
        calling({"name": "f", "arguments": "{"}),
        [", message 1: arguments of f: not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"],
    ),
    (
        messages(USER, {**RESULT, "tool_call_id": "c1"}, {"role": "assistant", "tool_calls": [{"id": "c1", **CALL}]}, RESULT, REPLY),
        [", message 1: tool_call_id 'c1' answers no earlier call (ids so far: none)"],
    ),
    (
        messages(USER, {"role": "assistant", "tool_calls": [{"id": "c1", **CALL}]}, {**RESULT, "tool_call_id": "c2"}, REPLY),
        [", message 2: tool_call_id 'c2' answers no earlier call (ids so far: c1)"],
    ),
    # tools
    ({**messages(USER, REPLY), "tools": {"f": {}}}, [": `tools`: expected a list, found dict"]),
    ({**messages(USER, REPLY), "tools": "f"}, [": `tools`: not JSON: Expecting value: line 1 column 1 (char 0)"]),
    (
        {**messages(USER, REPLY), "tools": [TOOL, "f", {"description": "x"}, {"function": {"name": None}}]},
        [": tool 1: expected an object with a name, found str", ": tool 2 has no name", ": tool 3 has no name"],
    ),
    # ShareGPT
    (
        shared(("robot", "x"), ("humn", "x"), ("gpt", 5)),
        [
            f", message 0: from is 'robot', expected one of {SPEAKERS}",
            f", message 1: from is 'humn', expected one of {SPEAKERS}, did you mean 'human'?",
            ", message 2: content is int, expected text",
        ],
    ),
    (
        {"conversations": [{"value": "x"}, "x"]},
        [f", message 0: role is None, expected one of {SPEAKERS}", ", message 1: expected an object, found str"],
    ),
    (
        {"conversations": [{**USER, "from": "human", "value": "x"}]},
        [", message 0: both from and role; keep one", ", message 0: both value and content; keep one"],
    ),
    (shared(("human", "x"), ("gpt", "")), [f", message 1: {EMPTY}"]),
    (
        shared(("human", "x"), ("function_call", "f(1)"), ("function_call", "5")),
        [
            ", message 1: function_call: not JSON: Expecting value: line 1 column 1 (char 0)",
            ", message 2: function_call: expected a list or an object, found int",
        ],
    ),
    ({**shared(("human", "x"), ("gpt", "y")), "system": 5}, [", system: content is int, expected text"]),
    # Alpaca, prompt and completion
    ({"instruction": "x", "output": " "}, [f", output: {EMPTY}"]),
    ({"instruction": 5, "input": ["x"], "output": "x"}, [": `instruction` is int, expected text", ": `input` is list, expected text"]),
    ({"instruction": "x", "output": "y", "history": [["a"], "ab"]}, [f": history {i}: expected [user, assistant]" for i in (0, 1)]),
    ({"instruction": "x", "output": "y", "history": [["a", ""]]}, [f", history 0: {EMPTY}"]),
    ({"instruction": "x", "output": "y", "history": 5}, [": `history`: expected a list, found int"]),
    ({"prompt": "x", "completion": ""}, [f", completion: {EMPTY}"]),
    ({"prompt": [USER], "completion": [{"role": "usr"}]}, [f", completion message 0: role is 'usr', {ROLES}, did you mean 'user'?"]),
    # together
    (
        {"messages": [{"role": "user", "contnet": "x", "content": 5}, {**REPLY, "train": 2}], "tools": "{"},
        [
            ", message 0: unknown field 'contnet', did you mean 'content'?",
            ", message 0: content is int, expected text",
            ", message 1: train is 2, expected true or false",
            ": `tools`: not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ],
    ),
    ("text", [": expected an object, found str"]),
    (None, [": expected an object, found NoneType"]),
]


@pytest.mark.parametrize(("row", "faults"), FAULTS)
def test_each_fault_in_words(row, faults):
    assert faults_of(row) == [f"here:1{fault}" for fault in faults]


def test_the_recipes_template_gets_what_it_expects(gemma_tools):
    row = {**messages(USER, {**CALLING, "weight": 0.5}, RESULT, REPLY), "tools": json.dumps([BARE])}
    read = normalized(row, "here:1")
    tokenizer = load_tokenizer(gemma_tools.recipe.at("tiny"))
    turns = supervise(read["messages"], tokenizer, read["tools"])
    assert json.dumps(BARE) in tokenizer.decode(turns[0].prompt_ids) and turns[0].weight == 0.5


def places(value, path=()):
    """Every place in a row."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inside for place in places(item, (*path, key)))]


def mutated(row, rng):
    """The row with one to three of its values deleted, replaced, or given to a name it does not have."""
    row = copy.deepcopy(row)
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(places(row)[1:] or [()])
        if not path:
            continue
        *above, last = path
        holder = row
        for key in above:
            holder = holder[key]
        junk = [None, 0, -1.5, 10**400, True, "", " ", "x", "[1]", '{"a": 1}', [], [None], [[1]], ["x"], {}, {"a": {"b": [{}]}}, {5: 6}]
        action = rng.randrange(4)
        if action == 0:
            del holder[last]
        elif action == 1 and isinstance(holder, dict):
            holder[rng.choice(["x", "role", "from", "train", "weight", 5, f"{last}s"])] = holder.pop(last)
        else:
            holder[last] = copy.deepcopy(rng.choice(junk))
    return row


def test_no_mutated_row_gets_past_unplaced():
    rng = random.Random(0)
    rows = [row for row, _ in FORMS.values()] + [{**messages(USER, CALLING, RESULT, REPLY), "tools": t} for t, _ in TOOLS.values()]
    refused = 0
    for _ in range(3000):
        row = mutated(rng.choice(rows), rng)
        try:
            conversation = normalized(row, "here:1")
        except RecipeError as error:
            refused += 1
            assert error.faults and all(fault.startswith(("here:1: ", "here:1, ")) for fault in error.faults)
        else:
            assert any(m["role"] == "assistant" for m in conversation["messages"])
            assert all(isinstance(m.get("content", ""), str) for m in conversation["messages"])
            assert normalized(conversation, "here:1") == conversation
    assert 1000 < refused < 2700
