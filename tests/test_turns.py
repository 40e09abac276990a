"""Promises 1 and 2 on Gemma 3, and on templates of other shapes: the two defining equalities, token for token."""

import pytest
from conftest import tokenizer_with

from sft_recipes import SupervisionError, supervise
from sft_recipes.turns import stop_ids

TALK = [
    {"role": "user", "content": "What is 2+2?"},
    {"role": "assistant", "content": " 4 \n"},
    {"role": "user", "content": "And 3+3? 🙂"},
    {"role": "assistant", "content": "It is 6."},
]


def served(tokenizer, messages, **kwargs):
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False, **kwargs)


def test_gemma3_turns_are_exact(tokenizer):
    turns = supervise(TALK, tokenizer)
    assert [turn.message_index for turn in turns] == [1, 3]
    for turn in turns:
        assert turn.prompt_ids == served(tokenizer, TALK[: turn.message_index])
    assert [tokenizer.decode(turn.completion_ids) for turn in turns] == ["4<end_of_turn>", "It is 6.<end_of_turn>"]
    assert stop_ids(turns) == {tokenizer.convert_tokens_to_ids("<end_of_turn>")}


def test_exactly_one_bos(tokenizer):
    assert supervise(TALK, tokenizer)[1].prompt_ids.count(tokenizer.bos_token_id) == 1


def test_the_stop_token_is_not_assumed_to_be_eos(tokenizer):
    assert supervise(TALK, tokenizer)[0].completion_ids[-1] != tokenizer.eos_token_id


def test_train_false_leaves_a_message_as_context(tokenizer):
    messages = [TALK[0], {**TALK[1], "train": False}, *TALK[2:]]
    (turn,) = supervise(messages, tokenizer)
    assert turn.message_index == 3 and turn.prompt_ids == served(tokenizer, TALK[:3])


def test_chatml_stops_at_im_end_and_not_at_the_newline_after_it():
    tokenizer = tokenizer_with("qwen3")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    turns = supervise(TALK, tokenizer)
    for turn in turns:
        assert turn.prompt_ids == served(tokenizer, TALK[: turn.message_index])
    assert tokenizer.decode(turns[1].completion_ids).endswith("It is 6.<|im_end|>")


def test_phi3_stops_before_the_eos_its_template_adds():
    tokenizer = tokenizer_with("phi3")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|end|>"]})
    assert tokenizer.decode(supervise(TALK, tokenizer)[1].completion_ids) == "It is 6.<|end|>"


def test_tokens_that_merge_across_the_boundary_leave_the_served_prompt_whole(tokenizer):
    template = "{% for m in messages %}{{ m.role + '\n' + m.content }}{% if m.role == 'assistant' %}<eos>{% endif %}\n{% endfor %}"
    tokenizer = tokenizer_with("gemma3")
    tokenizer.chat_template = template + "{% if add_generation_prompt %}assistant\n{% endif %}"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\n\nb"}]
    (turn,) = supervise(messages, tokenizer)
    assert turn.prompt_ids == served(tokenizer, messages[:1])
    assert tokenizer.decode(turn.prompt_ids).endswith("assistant\n") and tokenizer.decode(turn.completion_ids) == "\n\nb<eos>"


def test_a_turn_without_a_stop_token_is_refused(tokenizer):
    tokenizer = tokenizer_with("gemma3")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(SupervisionError, match="message 1: no control token ends the turn"):
        supervise(TALK[:2], tokenizer)


def test_a_rendering_that_does_not_continue_its_prompt_is_refused_with_both_texts(tokenizer):
    tokenizer = tokenizer_with("gemma3")
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}{% if add_generation_prompt %}<assistant><think>{% endif %}"
    )
    with pytest.raises(SupervisionError, match=r"message 1: .* served: .*<think>.* rendered: .*4"):
        supervise(TALK[:2], tokenizer)


def test_roles_the_template_refuses_are_a_fault_of_the_row(tokenizer):
    with pytest.raises(SupervisionError, match=r"message 2: the chat template refuses .* alternate"):
        supervise([TALK[0], TALK[0], TALK[1]], tokenizer)


CALL = {"type": "function", "id": "call00001", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": {"type": "object", "properties": {}}}}]
CALLING = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "get_weather", "tool_call_id": "call00001", "content": "1"},
    {"role": "assistant", "content": "Cold."},
]


def with_controls(template):
    """The template's tokenizer, every control token that its text names added as special."""
    import re

    tokenizer = tokenizer_with(template)
    found = re.findall(r"<\|?[A-Za-z_]+\|?>|<\|[^|>]+\|>", tokenizer.chat_template)
    words = "think tool_call tool_response tools function parameter arg_key arg_value".split()
    controls = sorted({token for token in found if token.strip("<>") not in words})
    tokenizer.add_special_tokens({"additional_special_tokens": controls})
    return tokenizer


@pytest.mark.parametrize(
    ("template", "answer", "call"),
    [
        ("qwen2_5", "Cold.<|im_end|>", "</tool_call><|im_end|>"),
        ("qwen3", "<think>\n\n</think>\n\nCold.<|im_end|>", "</tool_call><|im_end|>"),
        ("gemma4", "Cold.<turn|>", "<tool_call|><|tool_response>"),
        ("gptoss", "<|channel|>final<|message|>Cold.<|return|>", "<|call|>"),
        ("glm4moe", "\n<think></think>\nCold.<|user|>", "</tool_call><|observation|>"),
        ("llama3_2", "Cold.<|eot_id|>", '{"city": "Oslo"}}<|eot_id|>'),
        ("lfm2_2_5", "Cold.<|im_end|>", "<|tool_call_end|><|im_end|>"),
    ],
)
def test_the_stop_token_is_read_from_the_rendering_of_each_kind_of_turn(template, answer, call):
    tokenizer = with_controls(template)
    calling, answering = supervise(CALLING, tokenizer, TOOLS)
    for turn in (calling, answering):
        assert turn.prompt_ids == served(tokenizer, CALLING[: turn.message_index], tools=TOOLS)
    assert tokenizer.decode(answering.completion_ids) == answer
    assert tokenizer.decode(calling.completion_ids).endswith(call) and "Oslo" in tokenizer.decode(calling.completion_ids)


def test_a_template_that_drops_tool_calls_is_refused(tokenizer):
    with pytest.raises(SupervisionError, match="message 1: the chat template leaves no trace of its tool call to get_weather"):
        supervise(CALLING[:2], tokenizer, TOOLS)


@pytest.mark.parametrize("template", ["deepseek_r1_distill", "nemotron_3_nano"])
def test_a_prompt_that_opens_a_thought_which_the_turn_lacks_is_refused(template):
    with pytest.raises(SupervisionError, match="message 1: the rendered turn does not continue the served prompt"):
        supervise(TALK[:2], with_controls(template))
