"""A base model without a chat template, and plain text: the template it is given, and its control tokens."""

import functools
import json
from pathlib import Path

import pytest
from bases import KINDS, RESERVED, byte_level, dressed, llama3, qwen, write_base
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sft_recipes import RecipeError, load_recipe, supervise
from sft_recipes.weights import load_tokenizer
from sft_recipes.weights.templates import chat_template

CHAT = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "It is so."}]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a base model, see `write_base`; each is made once."""
    return functools.cache(lambda kind, *how: write_base(tmp_path_factory.mktemp(kind), kind, *how))


# The template and its control tokens


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", ["chatml", "gemma", "plain"])
def test_each_control_token_is_one_special_token_also_after_saving(kind, template, base, tmp_path):
    recipe = dressed(base(kind), template)
    tokenizer = load_tokenizer(recipe)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    wanted = {"chatml": ["<|im_start|>", "<|im_end|>"], "gemma": ["<start_of_turn>", "<end_of_turn>"], "plain": [tokenizer.eos_token]}
    for token in wanted[template]:
        ids = [t(f"a{token}b", add_special_tokens=False)["input_ids"] for t in (tokenizer, again)]
        assert ids[0] == ids[1] and ids[0].count(tokenizer.convert_tokens_to_ids(token)) == 1
        assert again.added_tokens_decoder[again.convert_tokens_to_ids(token)].special
    rendered = [t.apply_chat_template(CHAT, return_dict=False) for t in (tokenizer, again)]
    assert rendered[0] == rendered[1] and rendered[0].count(tokenizer.bos_token_id) == (tokenizer.bos_token is not None)
    assert again.get_vocab() == tokenizer.get_vocab() and again.pad_token == tokenizer.pad_token is not None
    assert again("Say it.")["input_ids"] == KINDS[kind]()("Say it.")["input_ids"]


def test_a_reserved_slot_takes_the_name_and_keeps_its_id(base):
    for kind, slots in (("llama3", RESERVED), ("gemma", ["<unused0>", "<unused1>"])):
        own, tokenizer = KINDS[kind](), load_tokenizer(dressed(base(kind)))
        ids = own.convert_tokens_to_ids(slots[:2])
        assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == ids and len(tokenizer) == len(own)
        assert not set(slots[:2]) & set(tokenizer.get_vocab()) and not set(slots[:2]) & set(tokenizer.all_special_tokens)


def test_a_tokenizer_that_has_them_stays_as_it_is(base):
    for recipe in (dressed(base("qwen")), load_recipe("gemma-tools").recipe.at("tiny")):
        own, tokenizer = AutoTokenizer.from_pretrained(recipe.model), load_tokenizer(recipe)
        assert tokenizer.get_vocab() == own.get_vocab() and tokenizer.backend_tokenizer.to_str() == own.backend_tokenizer.to_str()


def test_an_added_token_that_is_not_special_becomes_so(base, tmp_path):
    own = qwen()
    own.add_tokens(["<|eot_id|>", "<tool>"])
    own.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(Path(base("qwen"), "config.json").read_bytes())
    tokenizer = load_tokenizer(dressed(str(tmp_path), "plain", stop_token="<|eot_id|>"))
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    assert tokenizer.get_vocab() == own.get_vocab() and "<|eot_id|>" in special and "<tool>" not in special


def test_a_tokenizer_without_pad_token_gets_the_one_its_makers_meant(base, tmp_path):
    own = llama3()
    own.add_tokens(["<|image_pad|>", "<|finetune_right_pad_id|>"], special_tokens=True)
    own.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(Path(base("llama3"), "config.json").read_bytes())
    assert load_tokenizer(dressed(str(tmp_path))).pad_token == "<|finetune_right_pad_id|>"
    assert load_tokenizer(dressed(base("llama3"))).pad_token == "<|end_of_text|>"


def test_chatml_is_what_it_says(base):
    told = [{"role": "system", "content": "s"}, *CHAT]
    text = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nSay it.<|im_end|>\n<|im_start|>assistant\n"
    for kind, bos in (("qwen", ""), ("llama3", "<|begin_of_text|>")):
        tokenizer = load_tokenizer(dressed(base(kind)))
        assert tokenizer.apply_chat_template(told[:2], add_generation_prompt=True, tokenize=False) == bos + text
        assert tokenizer.apply_chat_template(told, tokenize=False) == bos + text + "It is so.<|im_end|>\n"
        with pytest.raises(Exception, match="chatml knows no tools"):
            tokenizer.apply_chat_template(told, tools=[{"type": "function"}])


def test_a_file_says_where_the_stop_token_goes(base, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}{{ stop_token if m.role == 'assistant' }}\n{% endfor %}")
    tokenizer = load_tokenizer(dressed(base("llama3"), str(file), stop_token="<|eot_id|>"))
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == "user: Say it.\nassistant: It is so.<|eot_id|>\n"
    assert tokenizer.convert_tokens_to_ids("<|eot_id|>") == llama3().convert_tokens_to_ids(RESERVED[0])


def test_what_cannot_be_is_one_line(base, tmp_path):
    def refused(match, kind="bare", template=None, **fields):
        with pytest.raises(RecipeError, match=match):
            load_tokenizer(dressed(base(kind), template, **fields))

    silent = tmp_path / "silent.jinja"
    silent.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for m in messages %}")
    refused("no chat template; name one with `chat_template`: chatml, gemma, gemma3_tools, llama3, plain")
    refused(r"unknown chat_template 'chatlm', did you mean 'chatml'\? It can be chatml, ", template="chatlm")
    refused("llama3 renders no conversation with the tokenizer of .*bos_token' is undefined", template="llama3")
    refused("broken.jinja renders no conversation", template=str(broken))
    refused(r"'<x>': chat_template .*silent.jinja never writes it; .* put {{ stop_token }}", template=str(silent), stop_token="<x>")
    refused("never writes it", template="chatml", stop_token="<x>")
    endless = tmp_path / "endless"
    PreTrainedTokenizerFast(tokenizer_object=byte_level(["<|x|>"])).save_pretrained(endless)
    with pytest.raises(RecipeError, match="no eos_token to end a turn of 'plain' with; name one with `stop_token`"):
        load_tokenizer(dressed(str(endless), "plain"))


def test_a_template_brings_the_response_template_beside_it(base, tmp_path):
    mine, beside = tmp_path / "mine.jinja", tmp_path / "mine.response.json"
    mine.write_text(chat_template("chatml"))
    assert load_tokenizer(dressed(base("qwen"), str(mine))).response_template is None
    found = {"start_anchor": "<|im_start|>assistant\n", "fields": {"content": {"close": "<|im_end|>"}}}
    beside.write_text(json.dumps(found))
    for kind in KINDS:
        tokenizer = load_tokenizer(dressed(base(kind), str(mine)))
        tokenizer.save_pretrained(tmp_path / kind)
        assert tokenizer.response_template == AutoTokenizer.from_pretrained(tmp_path / kind).response_template == found
    for wrong in ("{", "[]", '{"fields": {}}', json.dumps({**found, "fields": {"content": {"close_pattern": "("}}})):
        beside.write_text(wrong)
        with pytest.raises(RecipeError, match=r"mine\.response\.json: not a response template as transformers reads it: "):
            load_tokenizer(dressed(base("qwen"), str(mine)))


# Plain text

EDGES = [
    ("Q: What is it?\nA:", " It is so."),
    ("Say it. ", "12 words"),
    ("Once\n\n", "\n\nIt is"),
    (" two", "three "),
    ("Say", "  it\n"),
    ("Q: ", " \n A"),
    ("It is t", "wo"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_plain_text_is_prompted_as_a_completion_server_does(kind, base):
    tokenizer = load_tokenizer(dressed(base(kind), "plain"))
    for prompt, completion in EDGES:
        [turn] = supervise([{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}], tokenizer)
        assert turn.prompt_ids == tokenizer(prompt)["input_ids"], prompt
        assert turn.completion_ids[-1] == tokenizer.eos_token_id and turn.completion_ids.count(tokenizer.eos_token_id) == 1
        before, whole = (tokenizer.decode(ids) for ids in (turn.prompt_ids, turn.prompt_ids + turn.completion_ids))
        assert whole == before + completion + tokenizer.eos_token, (prompt, completion)
