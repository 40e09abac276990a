"""The trainer enforces what the recipe says, whatever way it is made; a run of it leaves a complete folder."""

import json
import shutil

import pytest
import torch
from datasets import Dataset
from trl import SFTTrainer

from sft_recipes import RecipeError, build_trainer, revisit, screen
from sft_recipes.revisit import comparing
from sft_recipes.run import Run, find, summary
from sft_recipes.weights import identity

SMALL = dict(scale="tiny", report_to="none", max_steps=2, per_device_train_batch_size=4, max_new_tokens=4, save_strategy="no", held_out=5)


@pytest.fixture(scope="module")
def make(small_base, chats, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")

    def build(name, **overrides):
        return build_trainer(
            "gemma-tools", **{**SMALL, "model": small_base, "train_dataset": chats(30), "output_dir": folder / name, **overrides}
        )

    return build


@pytest.fixture(scope="module")
def finished(make, chats, tmp_path_factory):
    """A whole run, short, on data from a file; one checkpoint a step."""
    file = tmp_path_factory.mktemp("data") / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in chats(30)))
    trainer = make("finished", train_dataset=None, data=str(file), save_strategy="steps", save_steps=1)
    trainer.output = trainer.train()
    return trainer


def test_the_rows_are_the_ones_that_were_prepared(make):
    trainer = make("rows", packing="none")
    assert trainer.train_dataset["input_ids"] == [row["input_ids"] for row in trainer.prepared.train.rows]
    assert trainer.train_dataset["labels"] == [row["labels"] for row in trainer.prepared.train.rows]


def test_a_list_and_a_dataset_give_the_same_rows(make, chats):
    rows = [make("same", train_dataset=data).train_dataset["input_ids"] for data in (chats(12), Dataset.from_list(chats(12)))]
    assert rows[0] == rows[1]


def test_a_batch_carries_loss_on_the_completions_alone(make, tokenizer):
    trainer = make("batch", packing="none")
    batch = next(iter(trainer.get_train_dataloader()))
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        said = tokenizer.decode(ids[labels != -100])
        assert said.endswith("<end_of_turn>") and said.removesuffix("<end_of_turn>").isdigit()


def test_only_the_language_model_learns_and_in_float32(make):
    """The border: TRL casts a QLoRA adapter to bfloat16; here small updates must not be lost."""
    learned = {name: p.dtype for name, p in make("adapter").model.named_parameters() if p.requires_grad}
    assert learned and set(learned.values()) == {torch.float32}
    assert all("language_model" in name and "lora_" in name for name in learned)


def test_the_base_is_in_four_bits_and_the_vision_tower_is_not(make):
    kinds = {name: type(m).__name__ for name, m in make("nf4").model.named_modules() if name.endswith(("base_layer", "fc1"))}
    assert {kind for name, kind in kinds.items() if "language_model" in name} == {"Linear4bit"}
    assert {kind for name, kind in kinds.items() if "vision" in name} == {"Linear"}


def test_training_moves_the_adapter_and_scores_before_and_after(finished):
    metrics = finished.metrics
    assert (
        set(metrics["before"])
        == set(metrics["after"])
        == {
            "tool_call_exact",
            "tool_call_valid",
            "stops",
            "eval_loss",
            "length",
            "repeats",
            "echoes_prompt",
            "distinct",
        }
    )
    assert metrics["before"]["eval_loss"] != metrics["after"]["eval_loss"]
    assert finished.output.metrics["after_eval_loss"] == metrics["after"]["eval_loss"]
    assert metrics["stop_tokens"] == ["<end_of_turn>"]


def test_the_folder_is_written_and_summarised(finished):
    run = finished.run
    assert json.loads((run.folder / "metrics.json").read_text())["merge"] == finished.metrics["merge"]
    told = summary(run)
    assert told["primary"] == "tool_call_exact" and len(told["samples"]) == 3 and told["samples"][0]["asked"].startswith("Say ")
    assert not [p for p in run.folder.rglob("*") if "unfinished" in p.name or p.name == ".proof"]


def test_the_run_and_its_adapter_know_the_base(finished, small_base):
    said, adapter = finished.run.read("recipe.json"), json.loads((finished.run.adapter / "base.json").read_text())
    assert said["base"] == identity(small_base) == {key: adapter[key] for key in said["base"]} and said["from"] is None


def test_an_earlier_run_is_set_aside_not_overwritten(tmp_path):
    for expected in ("run.1", "run.2"):
        run = Run(tmp_path / "run")
        run.write("recipe.json", {"n": expected})
        assert run.set_aside().name == expected
    assert json.loads((tmp_path / "run.1" / "recipe.json").read_text()) == {"n": "run.1"}
    assert Run(tmp_path / "run").set_aside() is None


def test_a_model_that_is_not_the_trained_one_is_refused_and_the_rest_kept(make, capsys):
    trainer = make("refused", max_kl=-1.0)
    with pytest.raises(RecipeError, match=r"merged: not proven to be the model that was trained: mean KL .* the bound is -1e\+00"):
        trainer.train()
    assert trainer.run.adapter.is_dir() and not trainer.run.merged.exists()
    metrics = trainer.run.read("metrics.json")
    assert metrics["merge"]["faults"] and metrics["after"] and (trainer.run.folder / "samples.jsonl").is_file()
    for merge in (metrics["merge"], {}):  # refused; stopped before it was proven
        trainer.run.write("metrics.json", {**metrics, "merge": merge})
        screen.print_summary(summary(trainer.run))
        assert f"Not deployed. Next: make merge RUN={trainer.run.folder}" in " ".join(capsys.readouterr().out.split())


def test_a_run_whose_template_has_changed_is_not_merged_with_another(finished, tmp_path):
    run = Run(tmp_path / "copy")
    shutil.copytree(finished.run.folder, run.folder)
    run.write("recipe.json", {**run.read("recipe.json"), "chat_template": "0" * 64})
    with pytest.raises(RecipeError, match="the chat template is not the one of the run; the recipe or its base has changed since"):
        revisit.merge(str(run.folder))


def test_nothing_to_resume_is_one_line(make):
    with pytest.raises(RecipeError, match="nothing to resume: no run in"):
        make("fresh").train(resume_from_checkpoint=True)


def test_a_run_is_found_by_folder_and_its_absence_named(finished):
    assert find(str(finished.run.folder)).folder == finished.run.folder
    with pytest.raises(RecipeError, match="no run at"):
        find("nothing").read("metrics.json")


def test_full_fine_tuning_deploys_too(make):
    trainer = make("full", adapter=None, quantization=None)
    trainer.train()
    assert trainer.metrics["merge"]["kl"] < 1e-8 and trainer.run.merged.is_dir() and not trainer.run.adapter.exists()


def test_over_long_conversations_are_listed_in_the_metrics(make, chats):
    long = {"messages": [{"role": "user", "content": "word " * 3000}, {"role": "assistant", "content": "x"}]}
    trainer = make("long", train_dataset=[*chats(30), long], eval_dataset=chats(3, start=50), max_lost=0.05)
    assert trainer.prepared.train.supervision.dropped[0].startswith("train_dataset:30: ")
    assert sorted(source for row in trainer.train_dataset["sources"] for source in row) == sorted(f"train_dataset:{i}" for i in range(30))


def test_a_finished_run_can_be_scored_and_merged_again(finished):
    scores = comparing.evaluate(str(finished.run.folder))
    assert scores == {**finished.metrics["after"], "eval_loss": pytest.approx(finished.metrics["after"]["eval_loss"], abs=1e-5)}
    again = revisit.merge(str(finished.run.folder))
    assert again["kl"] < 1e-8 and again["generations_equal"]


def test_a_run_whose_data_were_in_memory_is_not_judged_on_others(make, finished, tmp_path):
    run = Run(tmp_path / "copy")
    shutil.copytree(finished.run.folder, run.folder)
    run.write("recipe.json", {**run.read("recipe.json"), "data": {"train": "x", "held_out": "y"}})
    with pytest.raises(RecipeError, match="the held-out data are not those of the run"):
        comparing.evaluate(str(run.folder))


def test_resuming_continues_at_the_checkpoint(make, finished, chats, tmp_path):
    """Two steps and then a third are the three steps of an uninterrupted run."""
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in chats(30)))
    options = dict(train_dataset=None, data=str(file), save_strategy="steps", save_steps=2, max_steps=3, lr_scheduler_type="constant")
    whole = make("whole", **options)
    SFTTrainer.train(whole)
    shutil.rmtree(whole.run.checkpoints / "checkpoint-3")
    resumed = make("whole", **options)
    SFTTrainer.train(resumed, resume_from_checkpoint=True)
    assert resumed.state.global_step == 3
    weights = [{n: p.detach() for n, p in t.model.named_parameters() if p.requires_grad} for t in (whole, resumed)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=1e-5, atol=1e-6)


def weighted(chats):
    """Conversations of which every third counts half, every third twice."""
    for i, row in enumerate(chats(30)):
        yield {"messages": [row["messages"][0], {**row["messages"][1], "weight": (1.0, 0.5, 2.0)[i % 3]}]}


def test_weights_reach_the_batch_and_what_the_step_is_divided_by(make, chats):
    trainer = make("weighted", train_dataset=list(weighted(chats)), eval_dataset=chats(3, start=90))
    batches = list(trainer.get_train_dataloader())[:2]
    for batch in batches:
        assert torch.equal(batch["loss_weights"] > 0, batch["labels"] != -100)
    counted = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
    assert counted == sum(batch["loss_weights"].sum() for batch in batches)


def test_the_weighted_loss_is_the_weighted_mean_over_the_step_whatever_the_micro_batch(make, chats):
    """One step of four conversations as 1 x 4 and as 4 x 1: the slow mean, and the same gradients."""
    found = {}
    for size in (4, 1):
        data = {"train_dataset": list(weighted(chats))[:4], "eval_dataset": chats(3, start=90)}
        trainer = make(f"weighted{size}", packing="none", **data)
        rows = [dict(row) for row in trainer.train_dataset]
        batches = [trainer.data_collator(rows[i : i + size]) for i in range(0, 4, size)]
        everywhere = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
        loss = sum(trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=everywhere) for batch in batches)
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
        found[size] = loss.detach(), gradients
    total = weight = 0.0
    for row in rows:
        ids, labels, weights = (torch.tensor([row[name]]) for name in ("input_ids", "labels", "loss_weights"))
        logits = trainer.model(input_ids=ids).logits.detach()
        losses = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="none")
        total, weight = total + (losses * weights[0, 1:]).sum(), weight + weights.sum()
    torch.testing.assert_close(found[1][0], total / weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[4][0], found[1][0], rtol=1e-5, atol=1e-6)
    for name, gradient in found[4][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-4, atol=1e-6)


def test_a_weighted_run_trains_and_its_eval_loss_is_that_of_the_same_rows_without_weights(make, chats):
    held_out = list(weighted(chats))[:6]
    plain = [{"messages": [{k: v for k, v in m.items() if k != "weight"} for m in row["messages"]]} for row in held_out]
    losses = [
        make(name, train_dataset=list(weighted(chats)), eval_dataset=rows, per_device_eval_batch_size=6).evaluate()["eval_loss"]
        for name, rows in (("weightedeval", held_out), ("plaineval", plain))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    trainer = make("weightedrun", train_dataset=list(weighted(chats)), eval_dataset=held_out)
    SFTTrainer.train(trainer)
    assert trainer.state.global_step == 2 and trainer.evaluate(trainer.train_dataset)["eval_loss"] > 0
