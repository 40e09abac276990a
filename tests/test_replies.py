"""A reply to a message, whole and token by token, with a response template and without; nothing a model says is an error."""

import json

import pytest

from sft_recipes.replies import Listener, parse

THINKING = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<start_of_turn>model\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>"},
        "tool_calls": {
            "open": "<call>",
            "close": "</call>",
            "content": "json",
            "repeats": True,
            "transform": {"type": "function", "function": {"name": "{content.name}", "arguments": "{content.arguments}"}},
        },
        "content": {},  # it leaves the stop token where it is
    },
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}


@pytest.fixture
def reading(tokenizer, monkeypatch):
    """The tiny base's tokenizer with that response template."""
    monkeypatch.setattr(tokenizer, "response_template", THINKING, raising=False)
    return tokenizer


@pytest.fixture(scope="session")
def stop(tokenizer):
    return tokenizer.convert_tokens_to_ids("<end_of_turn>")


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def heard(listener, ids):
    return [piece for token in ids for piece in listener.hear(token)] + list(listener.end())


def test_without_a_response_template_the_text_is_content(tokenizer, stop):
    ids = ids_of(tokenizer, " Grüße, 日本 {x}\n")
    for reply in (ids, [*ids, stop]):
        assert parse(tokenizer, [], reply, [TOOL], {stop}) == {"role": "assistant", "content": " Grüße, 日本 {x}\n"}
        pieces = heard(Listener(tokenizer, [], [TOOL], {stop}), reply)
        assert "".join(pieces) == " Grüße, 日本 {x}\n" and len(pieces) > 3 and "\ufffd" not in "".join(pieces)
    assert parse(tokenizer, [], [], None, {stop}) == parse(tokenizer, [], [stop], None, {stop}) == {"role": "assistant", "content": ""}


def test_what_the_prompt_begins_belongs_to_the_message(reading, stop):
    prompt, reply = ids_of(reading, "<start_of_turn>model\n<think>"), [*ids_of(reading, "hm</think>Yes."), stop]
    assert parse(reading, prompt, reply, None, {stop}) == {"role": "assistant", "reasoning_content": "hm", "content": "Yes."}
    assert "".join(heard(Listener(reading, prompt, None, {stop}), reply)).startswith("Yes.")


def test_arguments_are_cast_by_their_schema_as_a_server_does(reading, stop):
    reply = [*ids_of(reading, '<call>{"name": "f", "arguments": {"a": "7"}}</call>'), stop]
    (call,) = parse(reading, [], reply, [TOOL], {stop})["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": {"a": 7}}
    assert heard(Listener(reading, [], [TOOL], {stop}), reply)[0] == call["function"]


@pytest.mark.parametrize("inside", ["{", "[1]", '{"name": "f"}', '{"name": "f", "arguments": ' + "[" * 3000 + "]" * 3000 + "}"])
def test_what_cannot_be_read_is_content_as_a_whole(reading, stop, inside):
    text = f"<call>{inside}</call>"
    reply = [*ids_of(reading, text), stop]
    assert parse(reading, [], reply, [TOOL], {stop}) == {"role": "assistant", "content": text}
    heard(Listener(reading, [], [TOOL], {stop}), reply)


def test_a_message_goes_into_a_file(reading, stop):
    message = parse(reading, [], [*ids_of(reading, "<think>a</think>b"), stop], [TOOL], {stop})
    assert json.loads(json.dumps(message)) == message
