"""A step that cannot be used is named with its conversations and not taken; a tensor that does not learn is named."""

import pytest
import torch
from peft import LoraConfig
from steps import KINDS, plant, trainer_of
from transformers import TrainerCallback

from sft_recipes import Recipe, RecipeError
from sft_recipes.training.guards import HISTORY, IN_A_ROW, Guard

ONE_BY_ONE = dict(per_device_train_batch_size=1, train_sampling_strategy="sequential", max_steps=16, learning_rate=1e-3)
SKIP = Recipe(model="none", data="none", bad_step="skip")


class Weights(TrainerCallback):
    """Takes down one matrix after every step."""

    def __init__(self):
        self.after = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.after.append(model.get_output_embeddings().weight.detach().clone())


def test_a_planted_nan_row_is_named_with_its_step_and_the_last_good_checkpoint(tmp_path):
    trainer = trainer_of("full-llama", tmp_path, **{**ONE_BY_ONE, "save_strategy": "steps", "save_steps": 2})
    plant(trainer, 6, float("nan"))
    with pytest.raises(RecipeError) as stopped:
        trainer.train()
    text = str(stopped.value)
    assert text.startswith("step 7: the loss is nan; its batch, worst first: talks.jsonl:7 (loss nan, gradient norm nan). The step was not")
    assert f"the last good checkpoint is {tmp_path / 'checkpoint-6'}, continue from it with --resume" in text
    assert all(p.isfinite().all() for name, p in trainer.model.named_parameters() if "embed" not in name)
    assert (tmp_path / "checkpoint-6" / "model.safetensors").is_file()


def test_among_the_rows_of_a_batch_the_planted_one_comes_first(tmp_path):
    trainer = trainer_of("full-llama", tmp_path, **{**ONE_BY_ONE, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2})
    plant(trainer, 12, float("inf"))
    with pytest.raises(RecipeError, match=r"step 2: the loss is nan; its batch, worst first: talks.jsonl:13 \(loss nan, .*; and 2 more"):
        trainer.train()


def plant_exploding(trainer):
    trainer.model.model.layers[0].input_layernorm.variance_epsilon = 1e-12
    plant(trainer, 12, 1e-6)


def test_a_planted_exploding_row_is_named(tmp_path):
    """A row that looks up an embedding next to zero, which the norm after it blows up: its gradient is thousands of times the others'."""
    trainer = trainer_of("full-llama", tmp_path, **ONE_BY_ONE)
    plant_exploding(trainer)
    with pytest.raises(RecipeError, match=r"step 13: the gradient norm is [\d.e+]+, the largest of the 12 .* first: talks.jsonl:13 "):
        trainer.train()


def plant_nan(trainer):
    plant(trainer, 12, float("nan"))


@pytest.mark.parametrize("planted", [plant_nan, plant_exploding])
def test_a_skipped_step_changes_nothing_and_is_told(tmp_path, capsys, planted):
    weights = Weights()
    trainer = trainer_of("full-llama", tmp_path, recipe=SKIP, callbacks=[weights], **ONE_BY_ONE)
    planted(trainer)
    trainer.train()
    assert torch.equal(weights.after[11], weights.after[12]) and not torch.equal(weights.after[12], weights.after[13])
    assert all(weight.isfinite().all() for weight in weights.after)
    (line,) = trainer.guard.skipped
    assert line.startswith("step 13: ") and "talks.jsonl:13" in line
    assert f"warning: skipped {line}" in capsys.readouterr().err


def test_steps_that_can_never_be_used_stop_the_run_whatever_the_rule(tmp_path):
    trainer = trainer_of("full-llama", tmp_path, recipe=SKIP, **ONE_BY_ONE)
    with torch.no_grad():
        trainer.model.get_output_embeddings().weight[5] = float("nan")
    with pytest.raises(RecipeError, match=rf"step {IN_A_ROW}: .* {IN_A_ROW} steps in a row could not be used; no checkpoint"):
        trainer.train()


def test_a_packed_batch_is_named_as_a_whole(tmp_path):
    layout = dict(per_device_train_batch_size=4, padding_free=True, max_length=None)
    trainer = trainer_of("full-llama", tmp_path, **{**ONE_BY_ONE, **layout})
    plant(trainer, 6, float("nan"))
    with pytest.raises(RecipeError, match=r"step 2: .*talks.jsonl:5, talks.jsonl:6, talks.jsonl:7, talks.jsonl:8 \(loss nan"):
        trainer.train()


def test_the_history_is_the_runs_own():
    guard = Guard("stop")
    assert guard.fault(1.0, 1e9) is None  # nothing is known yet
    guard = Guard("stop")
    assert not any(guard.fault(1.0, norm) for norm in [3.0] + [0.1] * (HISTORY - 1))
    assert guard.fault(1.0, 29.0) is None  # the first steps of a run are the steep ones
    assert guard.fault(1.0, 291.0) == f"the gradient norm is 291, the largest of the {HISTORY + 1} steps before it was 29"
    assert guard.fault(float("inf"), 1.0) == "the loss is inf" and guard.fault(1.0, float("nan")) == "the gradient norm is nan"


def test_adapters_that_no_gradient_reaches_are_named(tmp_path, monkeypatch, capsys):
    """The vision tower of a model that is shown text alone."""
    both = LoraConfig(r=2, target_modules=r".*(language_model|vision).*\.(q_proj|k_proj)", task_type="CAUSAL_LM")
    monkeypatch.setitem(KINDS, "seeing", (KINDS["lora-gemma3"][0], lambda: both))
    trainer = trainer_of("seeing", tmp_path, max_steps=3, per_device_train_batch_size=4)
    trainer.train()
    assert set(trainer.unmoved.values()) == {"has had no gradient"}
    assert len(trainer.unmoved) == 4 and all("vision" in name for name in trainer.unmoved)
    assert "warning: 4 of 12 trainable tensors stand still after the first steps: base_model.model.model.vision" in capsys.readouterr().err


def test_where_nothing_moves_the_run_stops(tmp_path):
    """In float32 a step of 1e-30 is lost in rounding."""
    trainer = trainer_of("full-llama", tmp_path, max_steps=3, learning_rate=1e-30, weight_decay=0.0)
    with pytest.raises(RecipeError, match=r"21 of 21 trainable tensors stand still .* has had a gradient and has not moved.*; and 15 more"):
        trainer.train()


def test_a_sound_run_names_nothing(tmp_path):
    for kind in KINDS:
        trainer = trainer_of(kind, tmp_path, max_steps=3, per_device_train_batch_size=4)
        trainer.train()
        assert trainer.unmoved == {} and trainer.guard.skipped == []


def test_a_second_run_of_a_trainer_watches_its_own_first_steps(tmp_path):
    trainer = trainer_of("full-llama", tmp_path, max_steps=2, per_device_train_batch_size=4)
    trainer.train()
    trainer.unmoved = {"left": "over"}
    trainer.train()
    assert trainer.unmoved == {}
