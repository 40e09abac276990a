"""`lima`: its rows at both scales, no dropout anywhere, and a short run of all of it."""

import json
from collections import Counter

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from sft_recipes import RecipeError, build_trainer, load_recipe
from sft_recipes.config import resolve
from sft_recipes.data.forms import normalized
from sft_recipes.data.reading import load_rows
from sft_recipes.preflight import duplicates
from sft_recipes.tiny import talks
from sft_recipes.weights import unweighted

# Rows as `train.jsonl` and `test.jsonl` of GAIR/lima have them, the texts shortened.
ASKED = ["Can brain cells move?", "The question is relatively broad: most neurons migrate only once."]
DIALOGUE = ["I've been feeling so sad.", "I'm sorry to hear that.", "What <b>can</b> I do?\n\n1.", "Talk to somebody – today."]


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("lima")


def said(texts):
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 9, texts, strict=False)]


@pytest.mark.parametrize("texts", [ASKED, DIALOGUE])
def test_texts_in_turn_become_a_conversation(recipe, texts):
    row = {"conversations": texts, "source": "stackexchange"}
    assert normalized(recipe.conversation(row), "lima:0")["messages"] == said(texts)


def test_a_row_without_an_answer_is_a_fault_and_other_forms_are_left_alone(recipe):
    with pytest.raises(RecipeError, match="lima:0: no assistant message, so nothing to learn"):
        normalized(recipe.conversation({"conversations": ["How do I bake bread?"], "source": "test"}), "lima:0")
    for row in ({"messages": said(ASKED)}, {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}):
        assert recipe.conversation(row) == row
    for odd in ([], ["Hi", None], "Hi"):
        with pytest.raises(RecipeError, match="lima:7"):
            normalized(recipe.conversation({"conversations": odd}), "lima:7")


def test_its_rows_are_read_from_the_file_and_what_is_missing_is_said(recipe, monkeypatch, jsonl):
    rows = [{"conversations": ASKED, "source": "stackexchange"}, {"conversations": DIALOGUE, "source": "multi_turn"}]
    file = jsonl(rows)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name, repo_type: {("GAIR/lima", "train.jsonl"): file}[repo, name])
    assert list(recipe.recipe.data()) == rows

    def gated(*_, **__):
        raise OSError("401 Client Error.\nAccess to dataset GAIR/lima is restricted.")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", gated)
    with pytest.raises(RecipeError) as caught:
        list(recipe.recipe.data())
    (fault,) = caught.value.faults
    assert fault.startswith("GAIR/lima: cannot be loaded: OSError: 401 Client Error.; it is gated: ") and "\n" not in fault


def test_it_resolves_as_declared_at_both_scales():
    full, tiny = resolve("lima", "full"), resolve("lima", "tiny")
    assert (full.recipe.model, full.recipe.held_out, full.recipe.primary) == ("Qwen/Qwen2.5-0.5B", 30, "stops")
    assert (full.config.learning_rate, full.config.num_train_epochs, full.config.bf16) == (1e-5, 3, False)
    assert (tiny.recipe.primary, tiny.config.num_train_epochs) == ("exact_match", 3)
    assert full.recipe.adapter is tiny.recipe.adapter is None and full.recipe.dtype == tiny.recipe.dtype == "float32"
    assert not full.recipe.ablation and list(tiny.recipe.ablation) == ["curated", "repeated"]


def test_a_step_of_its_learning_rate_would_be_lost_in_bfloat16():
    rate, weight = resolve("lima", "full").config.learning_rate, torch.tensor(0.02)
    assert weight.bfloat16() - rate == weight.bfloat16() and weight - rate != weight


def dropouts(model):
    """Every probability of dropout in a model's modules and configuration that is above 0."""
    modules = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout) and module.p > 0}
    configs = [model.config, *(getattr(model.config, name) for name in model.config.sub_configs)]
    return modules, {name: p for config in configs for name, p in config.to_dict().items() if "dropout" in name and p}


def test_no_dropout_is_active_at_either_scale():
    small = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    assert dropouts(Qwen2ForCausalLM(Qwen2Config(**small, attention_dropout=0.1)))[1] == {"attention_dropout": 0.1}
    for model in (Qwen2ForCausalLM(Qwen2Config(**small)), unweighted(resolve("lima", "tiny").recipe.model)):
        assert dropouts(model) == ({}, {})


@pytest.fixture(scope="module")
def rows():
    """The tiny scale's rows: training, held out."""
    return list(talks.train_talks()), list(talks.held_out_talks())


def test_the_tiny_rows_are_the_same_ones_at_every_call_and_none_is_on_both_sides(rows):
    train, held_out = rows
    assert (len(train), len(held_out)) == (1000, 100) and rows == (list(talks.train_talks()), list(talks.held_out_talks()))
    found = duplicates.find(*(load_rows(part, "talks", lambda row: row) for part in rows))
    assert found.train == found.held_out == duplicates.Copies()
    assert not {row["messages"][0]["content"] for row in train} & {row["messages"][0]["content"] for row in held_out}
    assert 200 < sum(len(row["messages"]) > 2 for row in train) < 400


def test_repeated_rows_are_so_many_different_ones_each_as_often(rows):
    repeated = [json.dumps(row) for row in talks.train_talks(50)]
    assert set(Counter(repeated).values()) == {20} and set(repeated) == {json.dumps(row) for row in rows[0][:50]}


def test_exact_match_is_for_rows_with_one_right_answer(recipe, rows):
    reply = {"role": "assistant", "content": "Yes.", "stopped": True}
    assert all(row["tests"] == "exact" for part in rows for row in part)
    assert recipe.score(reply, {"content": "Yes.", "tests": "exact"}) == {"exact_match": 1.0}
    assert recipe.score(reply, {"content": "No.", "tests": "exact"}) == {"exact_match": 0.0}
    assert recipe.score(reply, {"content": "Yes."}) == {}


def test_a_short_run_trains_all_weights_and_deploys_them(rows, tmp_path):
    train, held_out = rows
    quick = dict(max_steps=3, max_new_tokens=8, eval_strategy="no", save_strategy="no", report_to="none")
    where = str(tmp_path / "run")
    trainer = build_trainer("lima", scale="tiny", train_dataset=train[:24], eval_dataset=held_out[:4], output_dir=where, **quick)
    assert dropouts(trainer.model) == ({}, {})
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if "vision" not in name}
    trainer.train()
    still = [name for name, p in trainer.model.named_parameters() if name in before and torch.equal(p, before[name])]
    assert len(before) > 40 and all("multi_modal" in name for name in still)  # the images' way in has nothing to learn from text
    metrics = trainer.metrics
    assert metrics["primary"] == "exact_match" and metrics["after"]["eval_loss"] < metrics["before"]["eval_loss"] - 0.1
    assert metrics["merge"]["faults"] == [] and metrics["merge"]["kl"] < 1e-6
    assert (tmp_path / "run/merged/model.safetensors").is_file() and not (tmp_path / "run/adapter").exists()
