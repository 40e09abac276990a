"""What a run ends with: the checkpoint that was best at what it generates, within what it may forget."""

import copy
from itertools import count

import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback

from sft_recipes import RecipeError, build_trainer
from sft_recipes.config import resolve

SMALL = dict(scale="tiny", report_to="none", max_steps=4, eval_strategy="steps", eval_steps=1, save_total_limit=None, held_out=5)
SMALL |= dict(retain=None, per_device_train_batch_size=4, max_new_tokens=2, learning_rate=1e-3, warmup_steps=1)
TEXTS = [{"text": f"Number {i} is followed by {i + 1}, and that by {i + 2}."} for i in range(20)]


def texts():
    return copy.deepcopy(TEXTS)


@pytest.fixture(scope="module")
def make(small_base, chats, tmp_path_factory):
    """Trainers of a small model whose scores are planted: the next one for weights not met before, the same for the same weights."""
    folder, number = tmp_path_factory.mktemp("runs"), count()

    def build(planted=(), deployed=False, **overrides):
        options = {**SMALL, "model": small_base, "train_dataset": chats(30), "output_dir": folder / str(next(number)), **overrides}
        trainer, known, left = build_trainer("gemma-tools", **options), {}, iter(planted)

        def score(reply, expected):
            weights = float(sum(p.detach().double().sum() for p in trainer.model.parameters() if p.requires_grad))
            if weights not in known:
                known[weights] = next(left)
            return {"tool_call_exact": known[weights]}

        if planted:
            trainer.score = score
        if not deployed:
            trainer._deploy = lambda *_: {"faults": []}  # the merge and its proof have tests of their own
        return trainer

    return build


def evaluated(trainer):
    return {e["step"]: e for e in trainer.run.read_lines("history.jsonl") if "eval_loss" in e}


@pytest.mark.parametrize("kind", ["qlora", "full"])
def test_a_run_whose_best_loss_and_best_score_differ_keeps_the_checkpoint_of_the_best_score(make, kind):
    whole = dict(adapter=None, quantization=None) if kind == "full" else {}
    trainer = make([0.0, 0.2, 0.9, 0.5, 0.4], deployed=True, **whole)
    trainer.train()
    metrics, history = trainer.run.read("metrics.json"), evaluated(trainer)
    losses = {step: entry["eval_loss"] for step, entry in history.items() if step}
    assert list(history) == [0, 1, 2, 3, 4] and min(losses, key=losses.get) == 4  # the loss fell to the end
    best = metrics["best"]
    assert (best["metric"], best["step"], best["value"], best["checkpoint"]) == ("tool_call_exact", 2, 0.9, "checkpoint-2")
    assert best["agree"] is False and best["lowest_loss"]["step"] == 4
    assert "the lowest held-out loss" in best["said"] and "was at step 4, where tool_call_exact is 0.400" in best["said"]
    # what was kept is what is measured, and what is deployed, bit for bit
    assert metrics["after"]["tool_call_exact"] == 0.9 and metrics["end"]["tool_call_exact"] == 0.4
    assert metrics["after"]["eval_loss"] == pytest.approx(losses[2], rel=1e-6) and metrics["end"]["eval_loss"] == losses[4]
    assert metrics["merge"]["faults"] == [] and metrics["merge"]["trained_loss"] == pytest.approx(losses[2], rel=1e-5)
    kept, name = ("merged", "model") if kind == "full" else ("adapter", "adapter_model")
    saved, deployed = (load_file(f / f"{name}.safetensors") for f in (trainer.run.checkpoints / "checkpoint-2", trainer.run.folder / kept))
    assert saved.keys() == deployed.keys() and all(torch.equal(saved[key], deployed[key]) for key in saved)
    stages = {(line["stage"], line["step"]) for line in trainer.run.read_lines("samples.jsonl")}
    assert stages == {("before", 0), ("end", 4), ("after", 2)}


def test_of_equal_scores_the_one_with_the_lower_loss_is_kept(make):
    """The border: transformers keeps the first, which for a score that stays at 0 is a model that has hardly been trained."""
    trainer = make([0.0, 0.5, 0.5, 0.5, 0.5])
    trainer.train()
    best = trainer.run.read("metrics.json")["best"]
    assert best["step"] == 4 and best["agree"] and "end" not in trainer.metrics
    assert "lowest" not in best["said"]


def test_the_last_step_is_a_candidate_wherever_the_intervals_end(make):
    trainer = make([0.0, 0.1, 0.9], max_steps=3, eval_steps=2)
    trainer.train()
    assert list(evaluated(trainer)) == [0, 2, 3] and trainer.metrics["best"]["step"] == 3


@pytest.mark.parametrize("by", ["recipe", "callback"])
def test_training_stops_where_the_score_no_longer_rises(make, by):
    trainer = make([0.0, 0.9, 0.5, 0.9, 0.9], **(dict(patience=1) if by == "recipe" else {}))
    if by == "callback":
        trainer.add_callback(EarlyStoppingCallback(1))
    trainer.train()
    assert list(evaluated(trainer)) == [0, 1, 2] and trainer.metrics["best"]["step"] == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(eval_strategy="no"), "there was no evaluation while training"),
        (dict(save_strategy="no"), "no checkpoint lies where an evaluation was"),
    ],
)
def test_without_a_choice_the_last_step_is_kept_and_the_reason_said(make, options, reason):
    trainer = make([0.0, 0.9, 0.5, 0.1, 0.2], max_steps=2, **options)
    trainer.train()
    best = trainer.metrics["best"]
    assert best["checkpoint"] is None and best["step"] == 2 and reason in best["said"]


def test_a_metric_that_nothing_measures_is_refused_before_training(make):
    for options, told in (({"primary": "tool_call_exat"}, "recipe.primary"), ({"metric_for_best_model": "f1"}, "metric_for_best_model")):
        with pytest.raises(RecipeError, match=told) as error:
            make(**options).train()
        assert "tool_call_exact" in str(error.value)


def test_metric_for_best_model_may_be_any_score(make):
    trainer = make([0.0, 0.9, 0.5, 0.4, 0.3], metric_for_best_model="loss", max_steps=2)
    trainer.train()
    assert trainer.metrics["best"]["metric"] == "loss" and trainer.metrics["best"]["step"] == 2


def test_what_is_to_be_kept_is_measured_at_every_evaluation(make):
    trainer = make([0.0, 0.2, 0.9, 0.5, 0.4], retain=texts, max_rise=1e-9)
    trainer.train()
    history, retain = evaluated(trainer), trainer.run.read("metrics.json")["retain"]
    assert all("eval_retain_loss" in entry and 0 <= entry["eval_retain_accuracy"] <= 1 for entry in history.values())
    for stage, step in (("before", 0), ("after", 2), ("end", 4)):
        assert retain[stage]["loss"] == pytest.approx(history[step]["eval_retain_loss"], rel=1e-6)
        assert retain[stage]["accuracy"] == pytest.approx(history[step]["eval_retain_accuracy"])
    rows = trainer.prepared.retained.rows
    assert retain["rows"] == len(rows) == 4 and retain["tokens"] == sum(len(row["input_ids"]) - 1 for row in rows)


def slow_loss(trainer, rows):
    """One text after the other, through the model that is there."""
    sums = [0.0, 0]
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row["input_ids"]])
            loss = trainer.model(input_ids=ids, labels=ids).loss
            sums = [sums[0] + float(loss) * (ids.shape[1] - 1), sums[1] + ids.shape[1] - 1]
    return sums[0] / sums[1]


def test_the_measured_loss_and_accuracy_are_those_of_each_token_alone(make):
    trainer = make(retain=texts)
    found = trainer.judge().retained
    rows = trainer.prepared.retained.rows
    assert found["retain_loss"] == pytest.approx(slow_loss(trainer, rows), rel=1e-4)
    right = total = 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        guessed = trainer.model(input_ids=ids).logits[0, :-1].argmax(-1)
        right, total = right + int((guessed == ids[0, 1:]).sum()), total + len(guessed)
    assert found["retain_accuracy"] == pytest.approx(right / total)


def test_training_ends_where_too_much_is_forgotten_and_nothing_beyond_the_bound_is_kept(make, capsys):
    measured = iter([1.0, 1.05, 1.08, 1.5, 1.05])  # before, three evaluations, and the checkpoint that is kept
    trainer = make([0.0, 0.2, 0.3, 0.9], retain=texts, forgetting="stop")
    trainer._measure_retained = lambda: {"retain_loss": next(measured), "retain_accuracy": 0.5}
    trainer.train()
    assert list(evaluated(trainer)) == [0, 1, 2, 3] and trainer.metrics["best"]["step"] == 2
    assert "step 3" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_within_the_bound_is_not_deployed(make):
    measured = iter([1.0, 1.5, 1.5])
    trainer = make([0.0, 0.2], retain=texts, forgetting="stop")
    trainer._measure_retained = lambda: {"retain_loss": next(measured), "retain_accuracy": 0.5}
    with pytest.raises(RecipeError, match="no checkpoint is within it"):
        trainer.train()
    assert not trainer.run.merged.exists() and trainer.run.read("metrics.json")["retain"]["rise"] == 0.5


def test_replay_has_the_share_of_supervised_tokens_that_was_asked_for(make, chats):
    plain, mixed = (make(retain=texts, mix=mix, packing="none") for mix in (0.0, 0.3))
    assert plain.prepared.retained.rows == mixed.prepared.retained.rows  # measured on the same
    replay = mixed.prepared.replay
    longest = max(len(row["input_ids"]) for row in mixed.prepared.replayed.rows)
    learned = mixed.prepared.train.supervision.supervised_tokens
    assert 0.3 <= replay["share"] <= (0.3 / 0.7 * learned + longest) / (learned / 0.7 + longest)
    trained = mixed.train_dataset["input_ids"]
    assert len(trained) == len(plain.train_dataset) + replay["conversations"]
    measured = {tuple(row["input_ids"]) for row in mixed.prepared.retained.rows}
    assert not measured & {tuple(ids) for ids in trained}
    tokenizer = mixed.processing_class
    said = {tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in mixed.prepared.replayed.rows}
    assert said <= {row["text"] for row in TEXTS}
    assert mixed.prepared.stop_ids == plain.prepared.stop_ids  # a text's last token ends no turn


def test_texts_conversations_and_long_texts_can_be_kept(make, chats):
    rows = [*texts()[:5], *chats(4, start=100), {"text": "over and over " * 40}, {"text": ""}]
    trainer = make(retain=lambda: rows, mix=0.9, max_length=64, packing="none")
    parts = trainer.prepared.retained, trainer.prepared.replayed
    assert sum(len(part.conversations) for part in parts) <= len(rows)
    assert max(len(row["input_ids"]) for part in parts for row in part.rows) == 64  # cut in pieces, not dropped
    assert not any(part.supervision.dropped or part.supervision.trimmed for part in parts)


def test_faults_of_what_is_to_be_kept_name_the_row(make, jsonl):
    file = jsonl([{"text": 5}, {"nothing": 1}], name="keep.jsonl")
    with pytest.raises(RecipeError) as error:
        make(retain=file)
    assert "keep.jsonl:1" in str(error.value) and "keep.jsonl:2" in str(error.value)
    for options, told in ((dict(mix=0.2), "nothing to replay"), (dict(mix=1.0, retain=file), "mix is 1"), (dict(patience=0), "patience")):
        with pytest.raises(RecipeError, match=told):
            resolve("gemma-tools", "tiny", **{"retain": None, **options})


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({}, ("epoch", "epoch", True)),
        ({"eval_strategy": "steps"}, ("steps", "steps", True)),
        ({"eval_strategy": "no"}, ("no", "epoch", False)),
        ({"save_strategy": "no"}, ("epoch", "no", False)),
        ({"save_strategy": "best"}, ("epoch", "best", True)),
        ({"save_strategy": "steps", "save_steps": 5}, ("epoch", "steps", False)),
        ({"eval_strategy": "steps", "eval_steps": 5, "save_steps": 10}, ("steps", "steps", False)),
    ],
)
def test_evaluations_and_checkpoints_fall_together_unless_told_otherwise(said, found):
    config = resolve("gemma-tools", "tiny", **{"eval_strategy": "epoch", **said}).config
    assert (config.eval_strategy.value, config.save_strategy.value, config.load_best_model_at_end) == found
    assert config.metric_for_best_model == "tool_call_exact" and config.greater_is_better is True
