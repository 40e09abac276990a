"""What a run writes: one sum for `check`, training and each save, and no less than what is then on the disk."""

import dataclasses
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from sft_recipes import TINY, RecipeError, build_trainer, checkpoints
from sft_recipes.config import resolve
from sft_recipes.preflight import check
from sft_recipes.preflight import report as preflight
from sft_recipes.weights import load_model

RUN = dict(
    report_to="none", max_new_tokens=4, held_out=2, retain=None, max_steps=1, eval_strategy="no", save_strategy="steps", save_steps=1
)
FULL = dict(adapter=None, quantization=None)


@pytest.mark.parametrize("overrides", [FULL, {}], ids=["full", "qlora"])
def test_what_is_counted_before_is_what_is_written_and_the_same_everywhere(small_base, chats, tmp_path, monkeypatch, overrides):
    """`check`, on a model without weights, asks for what training asks for; both are within a tenth of the files."""
    monkeypatch.setattr(checkpoints.space, "FEW", 0.0)
    monkeypatch.setattr(checkpoints.space, "REST", 0.0)
    asked = []
    monkeypatch.setattr(preflight, "refuse_full", lambda folder, needed, what: asked.append(needed))
    trainer = build_trainer("gemma-tools", "tiny", model=small_base, train_dataset=chats(20), output_dir=tmp_path, **RUN, **overrides)
    trainer._deploy = lambda learned, lines: {}
    trainer._report = lambda: None
    trainer.train()
    saved = trainer.run.checkpoints / "checkpoint-1"
    tensors = sum(file.stat().st_size for file in (saved / "optimizer.pt", *saved.glob("*model.safetensors")))
    merged = (Path(small_base) / "model.safetensors").stat().st_size
    names = 40_000  # bytes: of tensors in the files, which are much of so small an adapter
    assert tensors - names < trainer._room["checkpoint"] < 1.1 * tensors
    assert merged - names < trainer._room["merged"] < 1.1 * merged
    assert asked == [pytest.approx(trainer._room["in_all"], rel=0.02)]


def recipe_of(**fields):
    fields = {"adapter": None, "quantization": None, "dtype": "bfloat16", **fields}
    return dataclasses.replace(resolve("gemma-tools", "tiny").recipe, **fields)


class Config:
    save_total_limit, save_strategy = 2, "steps"


def test_every_part_of_a_run_is_in_the_sum(monkeypatch):
    """Of 1,000 weights, all trained: three checkpoints with three float32 numbers a weight, and the deployed folder with 16 bits."""
    monkeypatch.setattr(checkpoints.space, "FEW", 0.0)
    monkeypatch.setattr(checkpoints.space, "REST", 7.0)
    monkeypatch.setattr(checkpoints.space, "SPARE", 1.0)
    model, config = torch.nn.Linear(100, 10, bias=False, device="meta"), Config()
    found = checkpoints.written(model, recipe_of(), config)
    assert found == {"checkpoint": 12_000, "merged": 2000, "in_all": 3 * 12_000 + 2000 + 7}
    model.requires_grad_(False)
    model.adapter = torch.nn.Parameter(torch.empty(50, device="meta"))
    found = checkpoints.written(model, recipe_of(adapter=LoraConfig(), base="measured"), config)
    assert found == {"checkpoint": 600, "merged": 2000, "in_all": 3 * 600 + 2 * 2000 + 200 + 7}
    config.save_strategy = "no"
    assert checkpoints.written(model, recipe_of(adapter=LoraConfig(), dtype="float32"), config)["in_all"] == 4000 + 200 + 7


def test_a_disk_that_is_too_small_is_one_fault_among_the_others(small_base, chats, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("usage", (), {"free": 1_000_000}))
    none = LoraConfig(r=4, target_modules=["nothing"], task_type="CAUSAL_LM")
    resolved = resolve(
        "gemma-tools", "tiny", model=small_base, adapter=none, output_dir=str(tmp_path / "run"), retain=None, report_to="none"
    )
    faults = check(resolved, chats(20), chats(2)).faults
    assert any("the run needs" in fault and "the disk has 1 MB free" in fault for fault in faults)
    assert any("nothing" in fault for fault in faults) and not (tmp_path / "run").exists()
    with pytest.raises(RecipeError, match=r"checkpoint-1 needs 2 MB, the disk has 1 MB free; take a larger one"):
        checkpoints.refuse_full(tmp_path / "not" / "there", 2e6, "checkpoint-1", "take a larger one")


def test_four_bits_are_counted_as_they_are_deployed():
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    whole, small = (load_model(str(TINY / "gemma3"), "bfloat16", kind) for kind in (None, four))
    assert checkpoints.deployed(small, 2) == checkpoints.deployed(whole)
