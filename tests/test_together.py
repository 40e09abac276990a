"""What does not go together on several processes is refused before launch, with the reason and what to do instead."""

from dataclasses import replace

import pytest
from transformers import BitsAndBytesConfig

from sft_recipes import Recipe, RecipeConfig
from sft_recipes.config import resolve
from sft_recipes.engines import Engine, launched
from sft_recipes.preflight import check, together

RECIPE = Recipe(model="none", data="none")
QUIET = dict(output_dir="none", report_to="none", use_cpu=True, bf16=False)
FSDP2, ZERO3 = Engine("fsdp2", 2, 2), Engine("zero3", 2, 2)


def faults(engine, quantization=None, devices=0, dtype="float32", **config):
    recipe = replace(RECIPE, quantization=quantization, dtype=dtype)
    return [f for f in together.faults(recipe, RecipeConfig(**{**QUIET, **config}), engine, devices) if "not installed" not in f]


def nf4(**options):
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **options)


@pytest.mark.parametrize("name", ["none", "ddp", "fsdp2", "zero2", "zero3"])
def test_what_works_is_let_through(name):
    assert not faults(Engine(name, 2, 2)) and not faults(Engine(name, 8, 8), devices=8)


@pytest.mark.parametrize("name", ["none", "ddp", "zero2"])
def test_four_bits_go_with_an_engine_that_leaves_weights_whole(name):
    assert not faults(Engine(name, 2, 2), nf4())


@pytest.mark.parametrize(
    ("stored", "dtype", "reason"),
    [
        ("uint8", "bfloat16", "they would be not parted, so that each device holds them all"),
        ("float32", "bfloat16", "they would be cast to bfloat16, which destroys their bits"),
        ("bfloat16", "float32", "they would be cast to float32"),
    ],
)
def test_four_bits_stored_in_another_type_than_the_rest_are_refused_under_fsdp2(stored, dtype, reason):
    (fault,) = faults(FSDP2, nf4(bnb_4bit_quant_storage=stored), dtype=dtype)
    assert f"stored as {stored}" in fault and reason in fault and f'bnb_4bit_quant_storage="{dtype}"' in fault


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_four_bits_stored_as_the_rest_go_with_fsdp2(dtype):
    assert not faults(FSDP2, nf4(bnb_4bit_quant_storage=dtype), dtype=dtype)


@pytest.mark.parametrize(
    ("engine", "quantization", "said"),
    [
        (ZERO3, nf4(), "take ENGINE=zero2"),
        (FSDP2, BitsAndBytesConfig(load_in_8bit=True), "quantise to 4 bits"),
        (Engine("fsdp1", 2, 2), None, "launch/fsdp2.yaml"),
        (replace(FSDP2, context=2), None, "context parallelism (cp_size 2): a row is split among processes"),
        (replace(ZERO3, sequence=4), None, "leave sp_size at 1"),
        (replace(FSDP2, loads_on_first=True), None, "fsdp_cpu_ram_efficient_loading"),
        (replace(ZERO3, inits_in_parts=True), None, "zero3_init_flag"),
    ],
)
def test_each_combination_is_refused_with_its_mend(engine, quantization, said):
    (fault,) = faults(engine, quantization)
    assert said in fault


def test_more_processes_than_devices_are_refused_and_of_several_machines_those_of_this_one_count():
    (fault,) = faults(Engine("ddp", 8, 8), devices=2)
    assert "8 processes on a machine with 2 CUDA devices" in fault
    assert not faults(Engine("ddp", 16, 8), devices=8)


def test_a_best_checkpoint_that_could_not_be_loaded_is_refused():
    config = dict(save_only_model=True, load_best_model_at_end=True, eval_strategy="epoch", save_strategy="epoch")
    (fault,) = faults(FSDP2, **config)
    assert "save_only_model" in fault and not faults(Engine("ddp", 2, 2), **config)


def test_deepspeed_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(together, "find_spec", lambda name: None)
    (fault,) = together.faults(RECIPE, RecipeConfig(**QUIET), Engine("zero2", 2, 2), 0)
    assert "pip install deepspeed" in fault


LAUNCHES = {
    "none": {},
    "ddp": {"WORLD_SIZE": "2"},
    "fsdp1": {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"},
    "fsdp2": {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
    "zero3": {"WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_the_engine_is_read_from_what_the_launcher_leaves(name):
    assert launched(None, LAUNCHES[name]) == Engine(name, processes=1 if name == "none" else 2)


def test_what_the_launcher_says_beyond_the_engine_is_read():
    env = {**LAUNCHES["fsdp2"], "LOCAL_WORLD_SIZE": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    env |= {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_CP_SIZE": "2"}
    assert launched(None, env) == Engine("fsdp2", 2, 2, context=2, loads_on_first=True)
    assert launched(None, {**LAUNCHES["zero3"], "ACCELERATE_DEEPSPEED_ZERO3_INIT": "true"}).inits_in_parts


def test_check_reports_it_with_all_other_faults(small_base, chats, monkeypatch, tmp_path):
    resolved = resolve("gemma-tools", "tiny", model=small_base, retain=None, output_dir=str(tmp_path))
    for name, value in LAUNCHES["fsdp2"].items():
        monkeypatch.setenv(name, value)
    faults = check(resolved, chats(30), chats(5)).faults
    assert any("the 4-bit weights are stored as uint8" in fault for fault in faults)
