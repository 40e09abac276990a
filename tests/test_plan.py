"""A plan as a person asks for it; and what is read off a model without weights, against real ones."""

import json

import pytest
import torch
from architectures import without_weights
from peft import LoraConfig
from test_cli import run
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from benchmarks import memory as benchmark
from sft_recipes import TINY, Recipe, RecipeError
from sft_recipes.config import resolve
from sft_recipes.plan import ENGINES, machine, plan, shapes
from sft_recipes.plan.memory import Setting, state
from sft_recipes.plan.sharding import simulated
from sft_recipes.preflight import Report
from sft_recipes.recipe import recipe_files
from sft_recipes.weights import load_model, unweighted

LLAMA = dict(vocab_size=512, hidden_size=64, intermediate_size=160, num_attention_heads=4, num_key_value_heads=2)
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def llama(layers=2, **fields):
    with torch.device("meta"):
        return LlamaForCausalLM._from_config(LlamaConfig(**LLAMA, num_hidden_layers=layers, **fields))


def recipe(**fields):
    return Recipe(model="none", data="none", **{"dtype": "float32", **fields})


def numbers(model, length=64, computed=("stored",), packed=True, **fields):
    return shapes.model_of(model, recipe(**fields), length, computed, packed)


# Read off a model


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_parameters_are_those_of_the_real_model(name):
    """Tied tables count once."""
    real = AutoModelForCausalLM.from_pretrained(TINY / name) if name == "llama" else load_model(str(TINY / name), "float32")
    found = numbers(unweighted(str(TINY / name)))
    assert found.parameters == found.trainable == sum(p.numel() for p in real.parameters())
    assert found.vocabulary == real.get_output_embeddings().weight.shape[0] and not found.counted


def test_only_the_adapter_is_trained_and_in_float32_on_a_frozen_base():
    found = numbers(llama(), adapter=LORA, dtype="bfloat16", computed=("stored", "mixed"))
    trained = [w for w in found.weights if w.trainable]
    assert {w.stored for w in trained} == {"float32"} and {w.stored for w in found.weights if not w.trainable} == {"bfloat16"}
    assert len(trained) == 2 * 7 * 2 and found.parameters - found.trainable == sum(p.numel() for p in llama().parameters())


def test_quantised_is_what_bitsandbytes_takes():
    """Linear layers, but for the head and what is left out by name; embeddings and norms stay."""
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True, llm_int8_skip_modules=["lm_head", "model.layers.1.mlp"])
    found = numbers(llama(), adapter=LORA, quantization=four, dtype="bfloat16")
    small = [w for w in found.weights if w.stored == "nf4"]
    assert len(small) == 7 + 4 and not any(w.shardable for w in small)
    floats = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_storage="bfloat16")
    assert all(w.shardable for w in numbers(llama(), length=8, adapter=LORA, quantization=floats).weights)


def test_a_few_layers_and_a_line_are_all_layers(monkeypatch):
    """And two lengths are nearly all: another place may hold the most there."""
    quick = numbers(llama(6)).passes
    monkeypatch.setattr(shapes, "DEEP", 6)
    slow, other = numbers(llama(6)).passes, numbers(llama(6), length=200).passes
    for key in quick:
        for name in ("kept", "forward", "backward"):
            line, whole, longer = (getattr(some[key], name) for some in (quick, slow, other))
            assert line.at(1, 64) == pytest.approx(whole.at(1, 64), rel=1e-9)
            assert line.at(1, 200) == pytest.approx(longer.at(1, 200), rel=0.06)


def test_what_is_kept_is_near_the_papers_figure():
    """Korthikanti et al. 2022: 34 bytes a token, layer and width in 16 bits for layers with dropout and a feed-forward of four widths."""
    wide = dict(hidden_size=256, intermediate_size=1024, num_attention_heads=4, num_key_value_heads=4, vocab_size=64)
    with torch.device("meta"):
        model = LlamaForCausalLM._from_config(LlamaConfig(**wide, num_hidden_layers=4))
    found = numbers(model, length=512, computed=("bfloat16",), dtype="bfloat16").passes["bfloat16", False]
    assert 34 < found.kept.per_token / 4 / 256 < 68  # a gated feed-forward and norms in float32 keep more


def test_a_model_that_cannot_be_followed_gets_a_rule_of_thumb_that_says_so():
    found = numbers(without_weights("Qwen3MoeForCausalLM", {**LLAMA, "num_hidden_layers": 2}))
    assert "BF16" in found.counted and found.passes["stored", False].kept.at(1, 10) == 2 * 64 * 34 * 2 * 10


def test_experts_are_followed_in_sixteen_bits():
    small = {**LLAMA, "num_hidden_layers": 2, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
    found = numbers(without_weights("Qwen3MoeForCausalLM", small), computed=("bfloat16",), dtype="bfloat16")
    assert not found.counted and found.passes["bfloat16", False].kept.at(1, 64) > 0


# Against what real runs hold; `python -m benchmarks.memory` has more and larger ones


SMALL = dict(width=256, layers=4, vocabulary=4096, length=768)
CASES = [benchmark.Case("", **SMALL, lora=lora, checkpointing=again) for lora in (False, True) for again in (False, True)]


def test_predicted_is_within_15_percent_of_measured():
    found = benchmark.compare_all(CASES)
    assert len(found) == 4 and all(abs(result["off"]) < benchmark.BOUND for result in found), found


# Sharded


@pytest.mark.parametrize("devices", [8, 1024])
def test_fsdp2_holds_what_the_arithmetic_says(devices):
    """PyTorch's own sharding of the same model among processes that are not there: to the byte."""
    base = recipe()
    found = simulated(llama(4), base, devices)
    assert 4 * found["parameters"] == state(numbers(llama(4)), Setting("fsdp2", devices, 1, 64, 0))[0]
    assert not torch.distributed.is_initialized()


# As a person asks for it


def ask(*words):
    result = run("plan", *words)
    assert result.exit_code == 0, result.output
    return result.stdout


CHATS = [{"prompt": f"Say {i}.", "completion": f"{i} it is"} for i in range(12)]
WORDS = [{"prompt": f"<{word}>", "completion": word[::-1]} for word in ("ab", "abc", "bcd", "xyz", "xy", "yz")]
SUMS = [{"prompt": f"<1+{i}+3>", "completion": f"{i + 4}"} for i in range(10)]
DATA = {"reverse-words": WORDS, "chain-of-thought": SUMS}


@pytest.mark.parametrize("name", recipe_files())
def test_every_recipe_has_a_plan(name, jsonl):
    """On data of its own form, as theirs take long to be made; no line of the table is longer than a terminal is wide."""
    rows = DATA.get(name, CHATS)
    found = ask(name, "--scale", "tiny", "--data", jsonl(rows), "--held_out", jsonl(rows[:2], "held.jsonl"))
    assert "fits: " in found and "tokens a step" in found and "name a device with --gpu" in found
    table = found[found.index("MB on each device") : found.index("fits: ")]
    assert max(map(len, table.splitlines())) <= 80


@pytest.fixture(scope="module")
def frontier():
    return json.loads(ask("frontier-405b", "--gpus", "1024", "--gpu", "h100", "--engine", "fsdp2", "--tensor", "2", "--json"))


def test_the_frontier_is_planned_without_the_hub(frontier):
    """4.2 M tokens a step, 2,400 steps, 10 B tokens through 405,853,388,800 parameters."""
    assert frontier["parameters"] == frontier["trainable_parameters"] == 405_853_388_800
    assert frontier["tokens_per_step"] == 4_194_304 and frontier["steps"] == 2400
    assert frontier["flops"] == pytest.approx(2.4e22, rel=0.06)  # attention among them
    assert frontier["fits"] and frontier["memory"]["fsdp2"]["total"] < 80 < frontier["memory"]["zero2"]["total"]
    assert frontier["hours"] * 1024 * 3600 * 0.4 * 989e12 == pytest.approx(frontier["flops"])
    assert frontier["cost"] == pytest.approx(frontier["hours"] * 1024 * 3)


def test_its_sharding_is_simulated_and_is_the_arithmetic(frontier):
    assert frontier["sharded"]["gb_float32"] == pytest.approx(frontier["memory"]["fsdp2"]["weights"], rel=1e-9)


def test_what_could_not_be_counted_is_told(frontier):
    assert any("tulu" in fault for fault in frontier["not_counted"]) and frontier["micro_batch"]["supervised"] == 8192


def test_check_runs_on_it_and_finds_what_is_missing_here():
    result = run("check", "frontier-405b", "--scale", "full", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 1 and found["counts"]["parameters"] == 405_853_388_800
    assert any("tulu" in fault for fault in found["faults"]) and any("tokenizer" in fault for fault in found["faults"])


def test_tables_show_every_engine_and_what_time_and_cost_rest_on(jsonl):
    words = ["gemma-tools", "--scale", "tiny", "--data", jsonl(CHATS), "--held_out", "2", "--gpu", "l4"]
    text = ask(*words, "--gpus", "2")
    assert all(engine in text for engine in ENGINES) and "fsdp2, chosen" in text and "sharding simulated" in text
    assert "refused: fsdp2: the 4-bit weights are stored as uint8" in text and "and makes it fit: --engine ddp, " in text
    assert "$0.70 an hour and device, assumed" in text and "at 40% of 30 TFLOP/s" in text
    paid = json.loads(ask(*words, "--price", "7", "--mfu", "0.2", "--json"))
    usual = json.loads(ask(*words, "--json"))
    assert paid["cost"] == pytest.approx(20 * usual["cost"]) and paid["hours"] == pytest.approx(2 * usual["hours"])


@pytest.mark.parametrize(
    "words, said",
    [
        (["--gpu", "h10"], "unknown GPU 'h10', did you mean 'h100'?"),
        (["--engine", "fsdp"], "unknown engine 'fsdp', did you mean 'fsdp2'?"),
        (["--gpus", "3", "--tensor", "2"], "--gpus 3 --tensor 2"),
        (["--mfu", "40"], "--mfu 40: it is a share"),
        (["--price", "-1"], "--price -1"),
    ],
)
def test_what_cannot_be_asked_is_one_line(words, said):
    result = run("plan", "lima", "--scale", "tiny", *words)
    assert result.exit_code == 1 and said in result.stderr and len(result.stderr.splitlines()) == 1


def test_without_a_model_there_is_no_plan():
    resolved = resolve("gemma-tools", "tiny")
    with pytest.raises(RecipeError, match="no such"):
        plan(Report(resolved, faults=["no such model"]), machine())
