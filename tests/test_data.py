"""Reading: every fault names file and line, all together; spellings are unified; the held-out split is stable."""

import random

import pytest

from sft_recipes import RecipeError, Source
from sft_recipes.data import load, load_rows, normalized, split

USER = {"role": "user", "content": "hi"}
REPLY = {"role": "assistant", "content": "hello"}


def faults_of(path):
    with pytest.raises(RecipeError) as caught:
        load([Source(path)], lambda row: row)
    return [fault.rpartition("/")[2] for fault in caught.value.faults]


def test_every_bad_line_is_named(jsonl):
    path = jsonl([{"messages": [USER, REPLY]}, "{not json", {"text": "no messages"}, "[1]", {"messages": [USER]}])
    assert faults_of(path) == [
        "data.jsonl:2: not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        "data.jsonl:3: no `messages` list (found: text)",
        "data.jsonl:4: expected an object with `messages`, found list",
        "data.jsonl:5: no assistant message, so nothing to learn",
    ]


def test_missing_file_names_the_nearest(jsonl):
    path = jsonl([{"messages": [USER, REPLY]}], "conversations.jsonl")
    assert faults_of(path.replace("conversations", "conversation")) == [
        "conversation.jsonl: no such file, did you mean 'conversations.jsonl'?"
    ]


def test_empty_file(jsonl):
    assert faults_of(jsonl([""])) == ["data.jsonl: the file is empty; it needs one conversation a line"]


def test_message_faults_name_the_message(jsonl):
    path = jsonl([{"messages": [{"role": "usr", "content": "x"}, REPLY, {"role": "assistant", "content": ""}, "text"]}])
    assert faults_of(path) == [
        "data.jsonl:1, message 0: role is 'usr', expected one of system, developer, user, assistant, tool, did you mean 'user'?",
        "data.jsonl:1, message 2: an assistant message with neither content nor tool_calls",
        "data.jsonl:1, message 3: expected an object, found str",
    ]


def test_more_than_twenty_faults_are_counted(jsonl):
    found = faults_of(jsonl(["nope"] * 30))
    assert len(found) == 21 and found[-1] == "... and 10 more faults"


def test_misspelt_messages_gets_the_nearest(jsonl):
    assert faults_of(jsonl([{"message": [USER, REPLY]}])) == ["data.jsonl:1: no `messages` list (found: message)"]


def test_arguments_and_tools_as_json_text_are_parsed_and_none_vanishes():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}', "strict": None}}
    row = {
        "messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}],
        "tools": '[{"type": "function", "function": {"name": "f"}}]',
    }
    conversation = normalized(row, "here:1")
    assert conversation["messages"][1] == {
        "role": "assistant",
        "tool_calls": [{"type": "function", "id": "1", "function": {"name": "f", "arguments": {"a": 1}}}],
    }
    assert conversation["tools"][0]["function"] == {"name": "f"}


def test_none_filled_arrow_schemas_are_cleaned():
    from datasets import Dataset

    rows = [
        {"messages": [USER, REPLY], "tools": [{"function": {"name": "f", "parameters": {"a": {"type": "string"}}}}]},
        {"messages": [USER, REPLY], "tools": [{"function": {"name": "g", "parameters": {"b": {"type": "string"}}}}]},
    ]
    conversations = load_rows(Dataset.from_list(rows), "train_dataset", lambda row: row)
    assert conversations[0]["tools"] == rows[0]["tools"]
    assert conversations[1]["source"] == "train_dataset:1"


def test_convert_faults_are_placed(jsonl):
    def convert(row):
        raise RecipeError("message 2: neither JSON nor a Python literal: '{'")

    with pytest.raises(RecipeError, match=r"data\.jsonl:1: message 2: neither"):
        load([Source(jsonl([{}]))], convert)


def test_split_ignores_order_and_keeps_twins_together(chats):
    rows = load_rows(chats(50) + chats(1), "rows", lambda row: row)
    shuffled = random.Random(0).sample(rows, len(rows))
    texts = lambda part: sorted(c["messages"][1]["content"] for c in part)  # noqa: E731
    train, held_out = split(rows, 7)
    assert texts(held_out) == texts(split(shuffled, 7)[1])
    assert len(train) + len(held_out) == 51
    assert not set(texts(train)) & set(texts(held_out))


def test_split_never_takes_more_than_a_fifth(chats):
    rows = load_rows(chats(20), "rows", lambda row: row)
    assert len(split(rows, 200)[1]) == 4
