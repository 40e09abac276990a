"""`llama-code`: its rows at both scales, the tiny base without a chat template, and a short run of all of it."""

import itertools
import json
import re

import pytest
from transformers import AutoTokenizer

from sft_recipes import TINY, build_trainer, load_recipe
from sft_recipes.config import resolve
from sft_recipes.data.forms import normalized
from sft_recipes.rows import IGNORED
from sft_recipes.scores import python_passes
from sft_recipes.tiny import code_base, code_corpus, code_pairs
from sft_recipes.tiny.words import is_held_out
from sft_recipes.weights import load_tokenizer

# One row of each dataset as its viewer shows it; texts shortened, columns whole.
OSS_ROW = {
    "lang": "python",
    "raw_index": 56454,
    "index": 156,
    "seed": "        arg = sys.argv[i]",
    "openai_fingerprint": "fp_eeff13170a",
    "problem": "You are tasked with a function that parses `--name value`.",
    "solution": "```python\ndef parse(args):\n    return dict(zip(args[::2], args[1::2]))\n```\nIt pairs each name with what follows.",
}
MBPP_ROW = {
    "source_file": "Benchmark Questions Verification V2.ipynb",
    "task_id": 82,
    "prompt": "Write a function to find the volume of a sphere.",
    "code": "import math\ndef volume_sphere(r):\n  return (4/3)*math.pi*r*r*r\n",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(volume_sphere(10), 4188.790204786391, rel_tol=0.001)"],
}


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("llama-code")


@pytest.fixture(scope="module")
def pairs():
    """The tiny scale's rows: training, held out."""
    return list(code_pairs.train_pairs()), list(code_pairs.held_out_pairs())


def test_it_resolves_as_declared_at_both_scales():
    full, tiny = resolve("llama-code", "full"), resolve("llama-code", "tiny")
    config = full.config
    assert (config.num_train_epochs, config.per_device_train_batch_size, config.gradient_accumulation_steps) == (2, 4, 4)
    assert (config.learning_rate, config.warmup_steps) == (2e-4, 0.05) and "cosine" in config.lr_scheduler_type
    for recipe in (full.recipe, tiny.recipe):
        adapter = recipe.adapter
        assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout, set(adapter.target_modules)) == (8, 16, 0.05, {"q_proj", "v_proj"})
        assert (recipe.chat_template, recipe.primary, recipe.loss_hint) == ("chatml", "python_passes", 1.8)


# The full scale's rows


def test_a_row_of_oss_instruct_is_a_problem_and_its_solution(recipe):
    made = normalized(recipe.conversation(OSS_ROW), "oss:0")
    assert [m["content"] for m in made["messages"]] == [OSS_ROW["problem"], OSS_ROW["solution"]] and "tests" not in made


def test_a_row_of_mbpp_shows_its_tests_and_keeps_them_with_their_imports(recipe):
    made = normalized(recipe.conversation(MBPP_ROW), "mbpp:0")
    asked, said = made["messages"]
    assert asked["content"].startswith("Write a function to find the volume of a sphere.\n\nYour code should pass these tests:\n\nassert ")
    assert said["content"] == "```python\nimport math\ndef volume_sphere(r):\n  return (4/3)*math.pi*r*r*r\n```"
    assert made["tests"] == ["import math", *MBPP_ROW["test_list"]]
    assert recipe.score({**said, "stopped": True}, made) == {"python_passes": 1.0}
    assert recipe.score({"content": said["content"].replace("4/3", "4"), "stopped": True}, made) == {"python_passes": 0.0}


def test_a_row_of_one_s_own_is_left_as_it_is(recipe):
    row = {"prompt": "Add.", "completion": "def f(): ...", "tests": "assert f"}
    assert recipe.conversation(row) is row


# The tiny scale's rows


def test_the_pairs_are_the_same_at_every_call_and_none_is_there_twice(pairs):
    train, held_out = pairs
    assert (len(train), len(held_out)) == (1500, 100)
    assert list(itertools.islice(code_pairs.train_pairs(), 20)) == train[:20]
    assert len({row["prompt"] for row in train + held_out}) == len({row["completion"] for row in train + held_out}) == 1600


def open_values(row):
    """The function's name, and the numbers and quoted words in it."""
    code = row["completion"]
    return {re.search(r"def (\w+)", code)[1], *re.findall(r"'(\w+)'", code), *(n for n in re.findall(r"\d+", code) if n != "1")}


def test_no_held_out_name_number_or_word_is_trained_on(pairs):
    train, held_out = (set().union(*map(open_values, rows)) for rows in pairs)
    assert len(held_out) > 100 and not train & held_out
    assert not any(is_held_out(value) for value in train if value.isdigit()) and all(is_held_out(v) for v in held_out if v.isdigit())


def test_every_reference_passes_its_tests_and_none_passes_another_s(pairs):
    _, held_out = pairs
    for row, other in itertools.islice(itertools.pairwise(held_out), 0, 100, 10):
        reply = {"content": row["completion"], "stopped": True}
        assert python_passes(reply, row) == 1.0, row
        assert python_passes({**reply, "content": other["completion"]}, row) == 0.0


# The tiny base


def test_the_base_is_a_small_llama_that_was_trained():
    folder = TINY / "llama"
    record, config = (json.loads((folder / name).read_text()) for name in ("base.json", "config.json"))
    assert (folder / "model.safetensors").stat().st_size <= 2.5e6 and 0.5e6 < record["parameters"] < 1.5e6
    assert config["architectures"] == ["LlamaForCausalLM"] and config["tie_word_embeddings"]
    assert record["loss_last_50"] < record["loss_first_50"] / 3


def test_chatml_s_tokens_take_the_slots_that_the_base_reserves(recipe):
    base, dressed = AutoTokenizer.from_pretrained(TINY / "llama"), load_tokenizer(recipe.recipe.at("tiny"))
    assert not base.chat_template and "<|im_start|>" not in base.get_vocab() and len(dressed) == len(base) == code_base.VOCABULARY
    slots = base.convert_tokens_to_ids(["<|reserved_special_token_0|>", "<|reserved_special_token_1|>"])
    assert sorted(dressed.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])) == slots
    assert dressed.pad_token == "<|finetune_right_pad_id|>"


def test_the_corpus_has_no_turns_and_nobody_asks_for_anything():
    text = "\n".join(itertools.islice(code_corpus.documents(1), 1000))
    assert "<|" not in text
    for ask in code_pairs.ASKS:
        assert ask.partition("{")[0] not in text


# All of it


@pytest.fixture(scope="module")
def finished(pairs, tmp_path_factory):
    """A run of a few steps on a few pairs, whole."""
    trainer = build_trainer(
        "llama-code",
        scale="tiny",
        train_dataset=pairs[0][:24],
        held_out=2,
        max_steps=3,
        max_new_tokens=8,
        save_strategy="no",
        eval_strategy="no",
        load_best_model_at_end=False,
        report_to="none",
        output_dir=tmp_path_factory.mktemp("runs") / "llama-code",
    )
    trainer.train()
    return trainer


def test_a_reply_and_its_stop_token_carry_the_loss_and_nothing_else(finished):
    row = finished.prepared.train.rows[0]
    learned = finished.prepared.tokenizer.decode([label for label in row["labels"] if label != IGNORED])
    whole = finished.prepared.tokenizer.decode(row["input_ids"])
    assert learned.startswith("```python\ndef ") and learned.endswith("\n```<|im_end|>")
    assert whole.startswith("<|begin_of_text|><|im_start|>user\n") and whole.endswith(f"<|im_start|>assistant\n{learned}")


def test_a_short_run_goes_all_the_way_to_a_proven_folder(finished):
    metrics = finished.metrics
    assert metrics["primary"] == "python_passes" and {"python_passes", "eval_loss"} <= metrics["after"].keys()
    assert metrics["merge"]["generations_equal"] and metrics["stop_tokens"] == ["<|im_end|>"]
    served = AutoTokenizer.from_pretrained(finished.run.merged)
    assert served.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False).startswith("<|begin_of_text|><|im_start|>user\nx")


def test_the_rows_of_the_new_tokens_are_learned_with_the_adapter(finished):
    learned = {name for name, parameter in finished.model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[-4] for name in learned if "lora_" in name} == {"q_proj", "v_proj"}
    assert any("token_adapter" in name for name in learned)
