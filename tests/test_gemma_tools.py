"""How tools are written for Gemma 3 and read back, and every shape of a Hermes row."""

import copy
import dataclasses
import json

import pytest
from conftest import tokenizer_with

from sft_recipes import RecipeError, supervise
from sft_recipes.data.forms import normalized
from sft_recipes.replies import Listener, parse
from sft_recipes.turns import Supervisor
from sft_recipes.weights import load_tokenizer

TOOL = {"type": "function", "function": {"name": "f", "description": "Does f.", "parameters": {"type": "object", "properties": {}}}}


def call(name, **arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


CALLS = [call("f", a=1), call("f", a="ü")]
TALK = {
    "messages": [
        {"role": "user", "content": "Do both."},
        {"role": "assistant", "tool_calls": CALLS},
        {"role": "tool", "content": '{"r": 1}'},
        {"role": "tool", "content": '{"r": 2}'},
        {"role": "assistant", "content": "Done:\n1 and 2."},
    ],
    "tools": [TOOL],
}


@pytest.fixture(scope="module")
def tokenizer(gemma_tools):
    return load_tokenizer(gemma_tools.recipe.at("tiny"))


@pytest.fixture(scope="module")
def gemma3():
    return tokenizer_with("gemma3")


# How tools are written


def rendered(tokenizer, messages, tools=None, **options):
    return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options)


def test_tools_calls_and_results_to_the_letter(tokenizer):
    whole = (
        "<bos><start_of_turn>user\n"
        'You can call these tools. To call one, answer with a line of JSON: {"name": ..., "arguments": {...}}\n'
        '{"name": "f", "description": "Does f.", "parameters": {"type": "object", "properties": {}}}\n'
        "\n"
        "Do both.<end_of_turn>\n"
        "<start_of_turn>model\n"
        '{"name": "f", "arguments": {"a": 1}}\n'
        '{"name": "f", "arguments": {"a": "ü"}}<end_of_turn>\n'
        "<start_of_turn>user\n"
        "Tool results:\n"
        '{"r": 1}\n'
        '{"r": 2}<end_of_turn>\n'
        "<start_of_turn>model\n"
        "Done:\n"
        "1 and 2.<end_of_turn>\n"
    )
    assert rendered(tokenizer, **TALK) == whole
    served = rendered(tokenizer, TALK["messages"][:4], [TOOL["function"]], add_generation_prompt=True)
    assert served == whole[: whole.index("Done:")]


def test_a_system_message_and_content_beside_calls_to_the_letter(tokenizer):
    messages = [
        {"role": "system", "content": "Be kind. "},
        {"role": "user", "content": "  <b>Tom & Jerry</b>\n"},
        {"role": "assistant", "content": "One moment.", "tool_calls": [call("f", a=[1, 2.5, None, True], b={"c": "'\"\\\n<&>"})]},
        {"role": "tool", "tool_call_id": "call_0", "name": "f", "content": "r \n"},
    ]
    system, question = "<bos><start_of_turn>user\nBe kind. \n\n", "<b>Tom & Jerry</b><end_of_turn>\n"
    said = (
        "<start_of_turn>model\nOne moment.\n"
        r"""{"name": "f", "arguments": {"a": [1, 2.5, null, true], "b": {"c": "'\"\\\n<&>"}}}<end_of_turn>"""
        "\n<start_of_turn>user\nTool results:\nr<end_of_turn>\n"
    )
    assert rendered(tokenizer, messages) == system + question + said
    header = 'You can call these tools. To call one, answer with a line of JSON: {"name": ..., "arguments": {...}}\n{"name": "ü<"}\n\n  '
    assert rendered(tokenizer, messages, [{"type": "function", "function": {"name": "ü<"}}]) == system + header + question + said


def test_each_of_several_results_is_a_line_and_whitespace_between_them_stays(tokenizer):
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call("f")] * 3}]
    results = [{"role": "tool", "content": content} for content in (" 1 \n", "2 ", " 3\n")]
    assert rendered(tokenizer, [*messages, *results]).endswith("user\nTool results:\n 1 \n\n2 \n 3<end_of_turn>\n")


def test_without_tools_it_is_gemma_3s_template(tokenizer, gemma3):
    image = [{"type": "text", "text": " Look: "}, {"type": "image"}, {"type": "text", "text": " this."}]
    talks = [
        [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "Hello.\n"}, {"role": "user", "content": "x"}],
        [{"role": "system", "content": "Be kind."}, {"role": "user", "content": image}],
        [{"role": "system", "content": [{"type": "text", "text": "Be kind."}]}, {"role": "user", "content": []}],
    ]
    for talk in talks:
        for ask in (True, False):
            assert rendered(tokenizer, talk, add_generation_prompt=ask) == rendered(gemma3, talk, add_generation_prompt=ask)
    for talk in ([{"role": "assistant", "content": "x"}], [*talks[0][:2], talks[0][1]], [{"role": "user", "content": 5}]):
        errors = []
        for one in (tokenizer, gemma3):
            with pytest.raises(Exception, match=r"must alternate|Invalid content") as caught:
                rendered(one, talk)
            errors.append(str(caught.value))
        assert errors[0] == errors[1]


def test_text_and_no_text_in_every_form_that_servers_send(tokenizer):
    """transformers serves lists of parts to a multimodal class, and `[]` beside calls; others send JSON text as arguments."""
    expected = rendered(tokenizer, **TALK)
    as_parts = [{**m, "content": [{"type": "text", "text": m["content"]}] if "content" in m else []} for m in TALK["messages"]]
    for messages in (as_parts, *([{"content": nothing, **m} for m in TALK["messages"]] for nothing in ("", None))):
        assert rendered(tokenizer, messages, [TOOL]) == expected
    as_json = [{"function": {**c["function"], "arguments": json.dumps(c["function"]["arguments"], ensure_ascii=False)}} for c in CALLS]
    messages = [{**m, "tool_calls": as_json} if "tool_calls" in m else m for m in TALK["messages"]]
    assert rendered(tokenizer, messages, [TOOL]) == expected
    bare = [{**m, "tool_calls": [c["function"] for c in CALLS]} if "tool_calls" in m else m for m in TALK["messages"]]
    assert rendered(tokenizer, bare, [TOOL["function"]]) == expected


def test_its_prefixes_are_read_from_one_rendering(tokenizer):
    supervisor = Supervisor(tokenizer)
    turns = supervisor.turns(**TALK)
    assert True in supervisor.template._prefixes
    assert [turn.message_index for turn in turns] == [1, 4]
    for turn in turns:
        served = rendered(tokenizer, TALK["messages"][: turn.message_index], [TOOL], add_generation_prompt=True)
        assert tokenizer.decode(turn.prompt_ids) == served


def test_a_control_token_in_a_call_or_a_schema_is_refused(tokenizer):
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call("f", a=["<end_of_turn>"])]}]
    with pytest.raises(RecipeError, match="message 1: its tool call holds the control token <end_of_turn>"):
        supervise(messages, tokenizer)
    with pytest.raises(RecipeError, match="tools: a schema holds the control token <end_of_turn>"):
        supervise(TALK["messages"], tokenizer, [{"type": "function", "function": {"name": "f", "description": "<end_of_turn>"}}])


# How a reply is read


def read_back(tokenizer, text):
    stop = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    return parse(tokenizer, [], [*tokenizer(text, add_special_tokens=False)["input_ids"], stop], [], {stop})


def test_reading_is_the_reverse_of_writing(tokenizer):
    for turn, expected in zip(supervise(tokenizer=tokenizer, **TALK), TALK["messages"][1::3], strict=True):
        assert parse(tokenizer, turn.prompt_ids, turn.completion_ids, [TOOL], {turn.completion_ids[-1]}) == {"content": "", **expected}


CALLED = [  # a reply, the content and the calls that it is
    ('One moment.\n{"name": "f", "arguments": {"a": 1}}', "One moment.", [call("f", a=1)]),
    ('{"name": "f", "arguments": {"a": 1}}\nDone.\nBye.', "Done.\nBye.", [call("f", a=1)]),
    ('a\n{"name": "f", "arguments": {}}\nb\n{"name": "g", "arguments": {}}\nc', "a\nb\nc", [call("f"), call("g")]),
    ('  {"arguments":{"a":"}\\"{\\n\\u00fc"},"name":"f"} \n\n', "", [call("f", a='}"{\nü')]),
    ('{"name": "f", "arguments": {"a": [1, -2.5e3, {"k": []}], "b": {"c": null, "d": [true, false]}}}', "", None),
    ('{"name": "f", "arguments": {"a": "tab\\tand \\"quotes\\", {braces}, \\\\"}}', "", [call("f", a='tab\tand "quotes", {braces}, \\')]),
]


@pytest.mark.parametrize(("text", "content", "calls"), CALLED)
def test_calls_are_lines(tokenizer, text, content, calls):
    calls = calls or [call("f", a=[1, -2500.0, {"k": []}], b={"c": None, "d": [True, False]})]
    assert read_back(tokenizer, text) == {"role": "assistant", "content": content, "tool_calls": calls}
    assert streamed(tokenizer, text) == (content.replace("\n", ""), [c["function"] for c in calls])


CONTENT = [
    '{"name": "f"}',
    '{"name": "f", "arguments": {"a": 1}',
    '{"name": "f", "arguments": {"a": 1}} and more',
    'See {"name": "f", "arguments": {}}',
    '{"name": "f", "arguments": {"a": 1,}}',
    '{"name": "f", "arguments": {"a": 01}}',
    '{"name": "f", "arguments": {"a": "\\q"}}',
    '{"name": "f", "arguments": {"a": "two\nlines"}}',
    '{"name": "f", "arguments": [1]}',
    '{"name": 5, "arguments": {}}',
    '{"name": "f", "arguments": {}, "more": 1}',
    "{'name': 'f', 'arguments': {}}",
    "{",
    "",
    '{"name": "f", "arguments": {"a": ' + "1" * 5000 + "}}",
]


@pytest.mark.parametrize("text", CONTENT)
def test_what_only_looks_like_a_call_stays_content(tokenizer, text):
    assert read_back(tokenizer, text) == {"role": "assistant", "content": text}
    assert "1111" in text or streamed(tokenizer, text) == (text, [])


def streamed(tokenizer, text):
    """Content without line breaks at its seams, and calls, as a listener gives them token by token."""
    stop = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    listener = Listener(tokenizer, [], [], {stop})
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], stop]
    pieces = [piece for token in ids for piece in listener.hear(token)] + list(listener.end())
    calls = [piece for piece in pieces if not isinstance(piece, str)]
    said = "".join(piece for piece in pieces if isinstance(piece, str))
    return (said.replace("\n", "") if calls else said), calls


def test_the_base_has_a_response_template_of_its_own_only_without_a_template_of_ours(gemma_tools, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    recipe = gemma_tools.recipe.at("tiny")
    kept = load_tokenizer(dataclasses.replace(recipe, model=str(tmp_path), chat_template=None))
    assert kept.response_template == tokenizer.response_template is not None and kept.chat_template == tokenizer.chat_template
    assert load_tokenizer(dataclasses.replace(recipe, model=str(tmp_path), chat_template="gemma3")).response_template is None


# Rows of Hermes


SYSTEM = (
    "You are given signatures within <tools></tools> XML tags. Here they are: <tools> "
    "[{'type': 'function', 'function': {'name': 'f', 'parameters': {'required': ['a'], 'strict': True}}}] </tools> "
    "Answer within <tool_call></tool_call> tags."
)


DECLARED = {"type": "function", "function": {"name": "f", "parameters": {"required": ["a"], "strict": True}}}


@pytest.fixture
def read(gemma_tools):
    """A row of ShareGPT turns as the recipe's data are read: the hook, then the check of the shape."""

    def read(*turns, **columns):
        row = {"conversations": [{"from": who, "value": text} for who, text in turns], **columns}
        before = copy.deepcopy(row)
        conversation = normalized(gemma_tools.conversation(row), "here:1")
        assert row == before
        return conversation["messages"], conversation["tools"]

    return read


def test_hermes_single_turn_python_literals(read):
    made = "<tool_call>\n{'arguments': {'a': True, 'b': None}, 'name': 'f'}\n</tool_call>"
    messages, tools = read(("system", SYSTEM), ("human", "Go."), ("gpt", made), tools="[]")
    assert messages == [
        {"role": "user", "content": "Go."},
        {"role": "assistant", "content": "", "tool_calls": [call("f", a=True, b=None)]},
    ]
    assert tools == [DECLARED]


def test_hermes_multi_turn_with_parallel_json_calls_and_results(read):
    calls = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>{"name": "f", "arguments": {"a": 2}}</tool_call>'
    results = '<tool_response>\n{"r": 1}\n</tool_response>\n<tool_response>{"r": 2}</tool_response>'
    messages, _ = read(("system", SYSTEM), ("human", "Go."), ("gpt", calls), ("tool", results), ("gpt", "Both done."))
    assert messages[1]["tool_calls"] == [call("f", a=1), call("f", a=2)]
    assert [m["content"] for m in messages[2:4]] == ['{"r": 1}', '{"r": 2}']
    assert messages[4] == {"role": "assistant", "content": "Both done."}


def test_hermes_tools_of_the_column_where_the_system_text_has_none(read):
    made = "One moment. <tool_call>{'name': 'f', 'arguments': {}}</tool_call>"
    messages, tools = read(("system", "Be kind."), ("human", "Go."), ("assistant", made), tools=json.dumps([DECLARED]))
    assert messages[0] == {"role": "system", "content": "Be kind."}
    assert messages[2] == {"role": "assistant", "content": "One moment.", "tool_calls": [call("f")]}
    assert tools == [DECLARED]


def test_what_is_learned_of_a_hermes_turn_stays_declared(gemma_tools):
    turn = {"from": "gpt", "value": "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>", "weight": 0}
    assert gemma_tools.conversation({"conversations": [turn]})["conversations"][0]["weight"] == 0


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "Go."}, {"from": "function_call", "value": "{}"}], "tools": "[]"},
        {"conversations": None, "messages": TALK["messages"]},
        {"messages": [{"role": "user", "content": "What is <tool_call>?"}, {"role": "assistant", "content": "A tag."}]},
        {"instruction": "hi", "output": "hello"},
        {"conversations": "no list"},
    ],
)
def test_rows_of_other_forms_go_through_as_they_are(gemma_tools, row):
    assert gemma_tools.conversation(row) is row


def test_llama_factory_rows_keep_calls_results_and_tools(read):
    asked = [("human", "Go."), ("function_call", '{"name": "f", "arguments": {"a": 1}}'), ("observation", '{"r": 1}'), ("gpt", "1.")]
    messages, tools = read(*asked, tools=json.dumps([TOOL["function"]]))
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[1]["tool_calls"] == [call("f", a=1)] and tools == [TOOL]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{'name': 'f', 'arguments': {'a': open('x')}}", "message 2: neither JSON nor a Python literal"),
        ("{'name': 'f', 'arguments': {'a': 1}", "message 2: neither JSON nor a Python literal"),
        ("{'name': 'f', 'arguments': {'a': {1, 2}}}", "message 2: neither JSON nor a Python literal"),
        ("{'arguments': {'a': 1}}", "message 1: tool call 0 has no name"),
        ("{'name': 'f', 'arguments': [1]}", "message 1: arguments of f: expected an object, found list"),
        ("['f']", "message 1: tool call 0: expected an object, found list"),
    ],
)
def test_hermes_calls_that_do_not_parse_are_faults(read, text, fault):
    with pytest.raises(RecipeError, match=fault):
        read(("system", SYSTEM), ("human", "Go."), ("gpt", f"<tool_call>{text}</tool_call>"))


def test_hermes_unknown_speaker(read):
    with pytest.raises(RecipeError, match="message 0: from is 'robot'"):
        read(("robot", "<tools>"))


def test_full_scale_is_what_the_docstring_says(gemma_tools):
    recipe = gemma_tools.recipe
    assert recipe.quantization.bnb_4bit_quant_type == "nf4" and recipe.quantization.bnb_4bit_use_double_quant
    assert (recipe.adapter.r, recipe.adapter.lora_alpha, recipe.dtype) == (16, 32, "bfloat16")
    assert recipe.config["learning_rate"] == 2e-4 and recipe.config["neftune_noise_alpha"] == 5
