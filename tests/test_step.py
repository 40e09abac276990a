"""Promises 5 and 6 in whole steps: the same data give the same gradient and the same `eval_loss` however they are laid out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from steps import KINDS, SHARED, SIZE, Noise, make_small_llama, one_step, rows, shared, trainer_of
from torch.nn.functional import cross_entropy
from trl import SFTTrainer

from sft_recipes import Recipe, RecipeError, checkpoints
from sft_recipes.optim import parameter_groups
from sft_recipes.optim.schedule import warmup_then_cosine
from sft_recipes.rows import IGNORED

WHOLE = dict(per_device_train_batch_size=16)
LAYOUTS = {
    "4x4": dict(per_device_train_batch_size=4, gradient_accumulation_steps=4),
    "16x1": dict(per_device_train_batch_size=1, gradient_accumulation_steps=16),
    "packed": dict(per_device_train_batch_size=16, padding_free=True, max_length=None),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The step in one batch, of each kind of model."""
    folder = tmp_path_factory.mktemp("whole")
    return {kind: one_step(kind, folder, **WHOLE)[:2] for kind in KINDS}


def assert_same_step(found, expected):
    (logs, gradients), (logs_expected, gradients_expected) = found, expected
    assert logs["loss"] == pytest.approx(logs_expected["loss"], rel=1e-5)
    assert logs["grad_norm"] == pytest.approx(logs_expected["grad_norm"], rel=1e-5)
    assert gradients.keys() == gradients_expected.keys() and gradients
    for name, gradient in gradients.items():
        difference = torch.linalg.vector_norm(gradient - gradients_expected[name])
        assert difference <= 1e-5 * torch.linalg.vector_norm(gradients_expected[name]), name
    for name in ("supervised_tokens_per_step", "examples_per_step"):
        assert logs[name] == logs_expected[name]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_same_in_every_layout(whole, kind, layout, tmp_path):
    assert_same_step(one_step(kind, tmp_path, **LAYOUTS[layout])[:2], whole[kind])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def on_one_process(place):
    """The losses and weights of whole runs, saved after five steps."""
    return {layout: shared(layout, place / "one" / layout, 1, save_strategy="steps", save_steps=5) for layout in SHARED}


@pytest.fixture(scope="module")
def on_two_processes(place, on_one_process):
    """What two processes found, each with half of the conversations."""
    file = place / "found.pt"
    program = Path(__file__).with_name("steps.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(program), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=150)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(file)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_same_on_two_processes(whole, on_two_processes, kind):
    found = on_two_processes[kind]
    assert found["processes"] == 2
    assert_same_step((found["logs"], found["gradients"]), whole[kind])
    assert_same_step(found["packed"], whole[kind])


def assert_same_run(found, expected):
    """Losses to 1e-5 relative; weights to what Adam makes of rounding."""
    assert len(expected[0]) > 3 and found[0] == pytest.approx(expected[0][-len(found[0]) :], rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, weight in expected[1].items():
        torch.testing.assert_close(found[1][name], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layout", SHARED)
def test_a_run_is_the_same_on_two_processes(on_one_process, on_two_processes, layout):
    """Thirteen rows fill no number of batches: accelerate repeats some on the second process, which are not learned twice. The
    order, noise and dropout of a step are its own."""
    assert_same_run(on_two_processes["shared"][layout], on_one_process[layout])


@pytest.mark.parametrize("layout", SHARED)
def test_a_run_goes_on_with_another_number_of_processes(on_one_process, on_two_processes, place, layout):
    """What MosaicML Streaming calls elastic determinism, one to two and two to one, in the middle of the second epoch."""
    assert_same_run(on_two_processes["resumed", layout], on_one_process[layout])
    resumed = shared(layout, place / "two" / layout, 1, resume=place / "two" / layout / "checkpoint-5")
    assert_same_run(resumed, on_one_process[layout])


def test_where_one_process_is_told_to_end_all_do_with_a_good_checkpoint(on_two_processes, place):
    saved = place / "stopped" / "checkpoint-3"
    first, second = on_two_processes["stopped"]
    assert first == f"another process was told to end: step 3 is saved in {saved}" and second == f"SIGTERM: step 3 is saved in {saved}"
    assert checkpoints.newest(place / "stopped") == (saved, [])
    assert (saved / "rng_state_0.pth").is_file() and (saved / "rng_state_1.pth").is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_eval_loss_is_the_same_on_two_processes_though_the_last_batch_is_filled_up(on_two_processes, kind, tmp_path):
    """Thirteen rows in batches of three on two processes, padded and packed: five are seen twice by them, and counted once."""
    trainer = trainer_of(kind, tmp_path, found=rows_of_thirteen(), per_device_eval_batch_size=13)
    assert on_two_processes[kind]["eval_loss"] == pytest.approx([trainer.evaluate()["eval_loss"]] * 2, rel=1e-6)


@pytest.mark.parametrize("kind", ["lora-gemma3", "full-llama"])
@pytest.mark.parametrize("layout", [WHOLE, *LAYOUTS.values()], ids=["whole", *LAYOUTS])
def test_the_noise_of_each_document_has_the_declared_size(tmp_path, kind, layout):
    """The largest of hundreds of uniform draws is within 1% of their bound, and never above it."""
    trainer = trainer_of(kind, tmp_path, neftune_noise_alpha=5.0, **layout)
    noise = Noise(trainer, 5.0)
    trainer.train()
    assert len(noise.shares) == 16 and all(0.99 < share <= 1.0001 for share in noise.shares)


@pytest.mark.parametrize("kind", ["lora-gemma3", "full-llama"])
def test_the_noise_has_the_declared_size_on_two_processes(on_two_processes, kind):
    shares = on_two_processes[kind]["noise"]
    assert len(shares) == 16 and all(0.99 < share <= 1.0001 for share in shares)


def test_a_planted_row_stops_both_processes_with_its_name(on_two_processes):
    first, second = on_two_processes["planted"]
    assert first == second and "worst first: talks.jsonl:7 (loss nan, gradient norm nan)" in first


def rows_of_thirteen():
    from conftest import tokenizer_with

    return rows(tokenizer_with("gemma3"))[:13]


def by_hand(found, model=None):
    """Each row's losses of supervised tokens, one row at a time through the plain forward of a fresh Llama, or another model."""
    model = model or make_small_llama()
    with torch.no_grad():
        for row in found:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            losses = cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
            yield losses, labels[0, 1:] != IGNORED, torch.tensor(row.get("loss_weights", row["labels"]))[1:].double()


def test_the_logged_loss_is_the_mean_over_the_tokens_of_the_step(whole, tokenizer):
    losses = torch.cat([losses[chosen] for losses, chosen, _ in by_hand(rows(tokenizer))])
    assert whole["full-llama"][0]["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert whole["full-llama"][0]["supervised_tokens_per_step"] == len(losses)


def test_loss_all_is_near_the_loss_over_everything_and_padding_is_what_was_padded(tokenizer, tmp_path):
    """In batches of one every position is in the sample, and the estimate is exact."""
    found = rows(tokenizer)
    exact = torch.cat([losses for losses, _, _ in by_hand(found)]).mean().item()
    logs, _, _ = one_step("full-llama", tmp_path, **LAYOUTS["16x1"])
    assert logs["loss_all"] == pytest.approx(exact, rel=1e-5) and logs["padding_share"] == 0
    logs, _, _ = one_step("full-llama", tmp_path, **WHOLE)
    assert logs["loss_all"] == pytest.approx(exact, rel=0.02) and logs["loss_all"] != logs["loss"]
    lengths = [len(row["input_ids"]) for row in found]
    assert logs["padding_share"] == pytest.approx(1 - sum(lengths) / (16 * max(lengths)))


@pytest.mark.parametrize("layout", [WHOLE, LAYOUTS["4x4"], LAYOUTS["packed"]], ids=["whole", "4x4", "packed"])
def test_weights_of_messages_count_in_every_layout(tokenizer, tmp_path, layout):
    found = rows(tokenizer, weighted=True)
    losses, weights = (torch.cat(parts) for parts in zip(*((lo[c], w[c]) for lo, c, w in by_hand(found)), strict=True))
    logs, _, _ = one_step("full-llama", tmp_path, found, **layout)
    assert logs["loss"] == pytest.approx(((losses * weights).sum() / weights.sum()).item(), rel=1e-5)


@pytest.mark.parametrize("layout", [WHOLE, LAYOUTS["4x4"], LAYOUTS["packed"]], ids=["whole", "4x4", "packed"])
def test_loss_per_example_is_the_mean_of_the_means_of_conversations(tokenizer, tmp_path, layout):
    found = rows(tokenizer, loss_per="example")
    means = [losses[chosen].mean().item() for losses, chosen, _ in by_hand(found)]
    logs, _, _ = one_step("full-llama", tmp_path, found, **layout)
    assert logs["loss"] == pytest.approx(sum(means) / len(means), rel=1e-5)


def test_upstream_gives_another_gradient_to_a_class_without_loss_kwargs(tokenizer, tmp_path):
    """The border: where this fails, transformers and TRL have mended `accepts_loss_kwargs=False`."""
    losses = []
    for layout in (WHOLE, LAYOUTS["4x4"]):
        ours = trainer_of("full-gemma4", tmp_path, eval_strategy="no", **layout)
        theirs = SFTTrainer(model=ours.model, args=ours.args, train_dataset=ours.train_dataset, processing_class=tokenizer)
        theirs.train()
        losses.append(theirs.state.log_history[0]["loss"])
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_a_model_of_experts_keeps_its_load_balancing_loss_as_upstream_has_it(tokenizer, tmp_path, monkeypatch):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    def make():
        torch.manual_seed(0)
        experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=16, router_aux_loss_coef=0.5)
        return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZE, **experts, initializer_range=0.2)).eval()

    monkeypatch.setitem(KINDS, "experts", (make, lambda: None))
    logs, _, ours = one_step("experts", tmp_path, eval_strategy="no", **WHOLE)
    theirs = SFTTrainer(model=make(), args=ours.args, train_dataset=ours.train_dataset, processing_class=tokenizer)
    theirs.train()
    assert logs["loss"] == pytest.approx(theirs.state.log_history[0]["loss"], rel=1e-5)
    assert logs["grad_norm"] == pytest.approx(theirs.state.log_history[0]["grad_norm"], rel=1e-4)
    tokens_alone = torch.cat([losses[chosen] for losses, chosen, _ in by_hand(rows(tokenizer), make())]).mean().item()
    assert logs["loss"] > tokens_alone + 0.3
    assert trainer_of("experts", tmp_path).evaluate()["eval_loss"] == pytest.approx(tokens_alone, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_eval_loss_is_the_mean_over_tokens_whatever_the_batch(kind, tmp_path):
    packed = dict(padding_free=True, max_length=None)
    layouts = [dict(per_device_eval_batch_size=size, **more) for size, more in ((1, {}), (3, {}), (8, {}), (3, packed), (13, packed))]
    found = [trainer_of(kind, tmp_path, rows_of_thirteen(), **layout).evaluate()["eval_loss"] for layout in layouts]
    assert found == pytest.approx([found[0]] * 5, rel=1e-5)


def test_eval_loss_equals_the_slow_mean(tokenizer, tmp_path):
    losses = torch.cat([losses[chosen] for losses, chosen, _ in by_hand(rows(tokenizer))])
    assert trainer_of("full-llama", tmp_path, per_device_eval_batch_size=3).evaluate()["eval_loss"] == pytest.approx(losses.mean().item())


def test_a_step_without_supervised_token_is_an_error_that_names_its_conversations(tokenizer, tmp_path):
    silent = [{**row, "labels": [IGNORED] * len(row["labels"])} for row in rows(tokenizer)[:2]]
    with pytest.raises(RecipeError, match=r"step 1: no token of its batch carries loss: talks.jsonl:[12], talks.jsonl:[12]$"):
        one_step("full-llama", tmp_path, silent, per_device_train_batch_size=2)


def test_a_micro_batch_without_supervised_token_costs_nothing_where_the_step_has_some(tokenizer, tmp_path):
    found = rows(tokenizer)[:4]
    silent = {**found[0], "labels": [IGNORED] * len(found[0]["labels"])}
    layout = dict(per_device_train_batch_size=1, gradient_accumulation_steps=4)
    logs, gradients, _ = one_step("full-llama", tmp_path, [silent, *found[1:]], **layout)
    expected = one_step("full-llama", tmp_path, found[1:], per_device_train_batch_size=3)
    assert logs["loss"] == pytest.approx(expected[0]["loss"], rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_logged_learning_rate_is_the_declared_curve_at_every_step(tmp_path, accumulation):
    layout = dict(per_device_train_batch_size=4, gradient_accumulation_steps=accumulation)
    trainer = trainer_of("full-llama", tmp_path, **{**layout, "max_steps": 10, "warmup_steps": 2, "learning_rate": 1e-3})
    trainer.train()
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx([1e-3 * warmup_then_cosine(step, 2, 10, 0.1) for step in range(10)])
    assert logged[:3] == pytest.approx([5e-4, 1e-3, 1e-3]) and min(logged[9:]) > 1e-4


def test_the_learning_rate_is_the_declared_curve_on_two_processes(on_two_processes):
    assert on_two_processes["rates"] == pytest.approx([1e-3 * warmup_then_cosine(step, 2, 10, 0.1) for step in range(10)])


def test_the_floor_may_be_a_rate_and_other_schedules_are_upstreams(tmp_path):
    trainer = trainer_of("full-llama", tmp_path, learning_rate=1e-3, lr_scheduler_kwargs={"min_lr": 5e-4}, max_steps=4)
    trainer.create_optimizer_and_scheduler(4)
    assert trainer.lr_scheduler.lr_lambdas[0](4) == pytest.approx(0.5)
    trainer = trainer_of("full-llama", tmp_path, lr_scheduler_type="constant")
    trainer.create_optimizer_and_scheduler(4)
    assert trainer.lr_scheduler.lr_lambdas[0](4) == 1.0


@pytest.mark.parametrize("ratio", [None, 16.0])
def test_the_optimiser_has_the_declared_groups_betas_and_rates(tmp_path, ratio):
    recipe = Recipe(model="none", data="none", loraplus_lr_ratio=ratio)
    trainer = trainer_of("lora-gemma3", tmp_path, recipe=recipe, weight_decay=0.1)
    trainer.create_optimizer()
    expected = parameter_groups(trainer.model, 0.1, 1e-2, ratio)
    found = trainer.optimizer.param_groups
    assert [list(map(id, group["params"])) for group in found] == [list(map(id, group["params"])) for group in expected]
    assert [group["weight_decay"] for group in found] == [0.1] * len(expected) and found[0]["betas"] == (0.9, 0.95)
    assert [group["lr"] for group in found] == ([1e-2, 0.16] if ratio else [1e-2])


def test_lora_plus_trains_and_every_group_follows_the_curve(tmp_path):
    recipe = Recipe(model="none", data="none", loraplus_lr_ratio=4.0)
    trainer = trainer_of("lora-gemma3", tmp_path, recipe=recipe, max_steps=3, warmup_steps=2, **WHOLE)
    trainer.train()
    assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([1e-3, 4e-3])
    assert trainer.state.log_history[0]["learning_rate"] == pytest.approx(5e-3)


@pytest.mark.parametrize("kind", ["lora-gemma3", "full-llama"])
@pytest.mark.parametrize("layout", ["4x4", "packed"])
def test_neftune_reaches_training_alone_and_leaves_nothing_behind(tmp_path, kind, layout):
    """In training the loss is another one, drawn anew at every step; evaluation and the saved model know nothing of it."""
    noisy, _, trainer = one_step(kind, tmp_path, neftune_noise_alpha=5.0, **LAYOUTS[layout])
    plain, _, without = one_step(kind, tmp_path, **LAYOUTS[layout])
    assert noisy["loss"] != plain["loss"] and noisy["loss"] == pytest.approx(plain["loss"], rel=0.2)
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]
    assert not trainer.model.get_input_embeddings()._forward_hooks
    assert not hasattr(trainer.model.get_input_embeddings(), "neftune_noise_alpha")
    trainer.train()
    assert not trainer.model.get_input_embeddings()._forward_hooks and without.args.neftune_noise_alpha is None


def test_an_interruption_within_a_forward_pass_leaves_no_hook(tmp_path):
    """While the noise and the choice of positions are on the model."""
    trainer = trainer_of("full-llama", tmp_path, neftune_noise_alpha=5.0, **WHOLE)
    during = []

    def interrupt(module, args):
        during.extend(name for name, m in trainer.model.named_modules() if m is not module and (m._forward_hooks or m._forward_pre_hooks))
        raise KeyboardInterrupt

    handle = trainer.model.model.norm.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    handle.remove()
    assert during == ["model.embed_tokens", "lm_head"]
    assert not [m for m in trainer.model.modules() if m._forward_hooks or m._forward_pre_hooks]
