"""What a machine does to a training: one line with the figures to lower, and nothing lost."""

import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from steps import trainer_of
from transformers import TrainerCallback

from sft_recipes import RecipeError, build_trainer, plan
from sft_recipes.preflight import Report
from sft_recipes.progress import told_in_lines
from sft_recipes.run import Run
from sft_recipes.training.faults import Sizes, fault, lowered

SIZES = Sizes(batch=8, accumulation=2, row_tokens=None, longest=900, checkpointing=True, eval_batch=16, max_new_tokens=64, workers=4)
SMALL = dict(
    scale="tiny", report_to="none", max_steps=4, per_device_train_batch_size=4, max_new_tokens=4, held_out=2, packing="none", retain=None
)


def sized(**changed):
    return Sizes(**{**vars(SIZES), **changed})


@pytest.mark.parametrize(
    ("sizes", "phase", "found"),
    [
        (
            SIZES,
            "training",
            ["--per_device_train_batch_size 4 --gradient_accumulation_steps 4 (they were 8 and 2; the step stays as large)"],
        ),
        (
            sized(batch=9),
            "training",
            ["--per_device_train_batch_size 3 --gradient_accumulation_steps 6 (they were 9 and 2; the step stays as large)"],
        ),
        (
            sized(row_tokens=4096),
            "training",
            ["--row_tokens 2048 --gradient_accumulation_steps 4 (they were 4096 and 2; the step stays as large)"],
        ),
        (sized(row_tokens=1024), "training", ["--max_length 450 (the longest row has 900)"]),
        (sized(batch=1), "training", ["--max_length 450 (the longest row has 900)"]),
        (SIZES, "evaluation", ["--per_device_eval_batch_size 8 (it was 16; the scores stay)"]),
        (SIZES, "generation", ["--max_new_tokens 32 (it was 64)"]),
    ],
)
def test_what_to_lower_and_by_how_much(sizes, phase, found):
    assert lowered(sizes, phase) == found


def test_kept_activations_go_first_and_a_step_stays_as_large():
    first, second = lowered(sized(checkpointing=False))
    assert first.startswith("--gradient_checkpointing true") and second.startswith("--per_device_train_batch_size 4")
    for batch in range(2, 50):
        words = lowered(sized(batch=batch))[0].split()
        assert int(words[1]) * int(words[3]) == batch * SIZES.accumulation and int(words[1]) < batch


@pytest.fixture(scope="module")
def make(small_base, chats, tmp_path_factory):
    def build(name, **overrides):
        folder = tmp_path_factory.mktemp("faults") / name
        return build_trainer(
            "gemma-tools",
            **{**SMALL, "held_out": 2, "retain": None, "model": small_base, "train_dataset": chats(30), "output_dir": folder, **overrides},
        )

    return build


class At(TrainerCallback):
    """Does something at the beginning of a step."""

    def __init__(self, step, work):
        self.step, self.work = step, work

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.work()


class Always(TrainerCallback):
    """Does something at the beginning of every step."""

    def __init__(self, work):
        self.work = work

    def on_step_begin(self, *args, **kwargs):
        self.work()


def raising(error):
    def work(*args):
        raise error

    return work


def no_memory():
    torch.empty(2**60, dtype=torch.uint8)  # torch's own error, on a machine of any size


def test_memory_that_runs_out_names_the_plans_figures_and_the_last_checkpoint(make):
    trainer = make("memory", save_strategy="steps", save_steps=2, eval_strategy="no")
    trainer.add_callback(At(2, no_memory))
    with pytest.raises(RecipeError) as caught:
        trainer.train()
    (line,) = caught.value.faults
    report = Report(trainer.resolved, trainer.prepared, trainer.layout, counts={"parameters": trainer.model.num_parameters()})
    now, advice = plan.plan(report)["memory"]["ddp"]["total"], plan.lowered(report)
    assert line.startswith(f"step 3: out of memory in training (1152921504606846976 bytes more were asked for); try {advice}; ")
    assert f"GB in place of {now:.3f}, of " in advice and "it should have fitted" in advice
    assert line.endswith("checkpoint-2, continue from it with --resume") and (trainer.run.checkpoints / "checkpoint-2").is_dir()


def test_halves_are_named_where_the_plan_cannot_count_and_why(make, monkeypatch):
    """Whatever it raises; and an evaluation, which it does not count, does not ask it."""
    trainer = make("uncounted", gradient_checkpointing=True)
    monkeypatch.setattr("sft_recipes.plan.lowered", raising(KeyError("mixed")))
    text = fault(MemoryError(), trainer)
    assert text.endswith("the step stays as large); halves, as `plan` could not count it: 'mixed'")
    try:
        evaluation_loop()
    except MemoryError as error:
        assert "evaluation" in (text := fault(error, trainer)) and "plan" not in text


def evaluation_loop():
    """Named as transformers' is."""
    raise MemoryError


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"),
        MemoryError(),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_every_kind_of_memory_fault_is_told(error):
    config = SimpleNamespace(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        gradient_checkpointing=True,
        per_device_eval_batch_size=2,
        dataloader_num_workers=0,
    )
    resolved = SimpleNamespace(config=config, recipe=SimpleNamespace(row_tokens=None, max_new_tokens=4))
    about = dict(state=SimpleNamespace(global_step=0), resolved=resolved, layout=SimpleNamespace(packed=None))
    trainer = SimpleNamespace(**about, prepared=SimpleNamespace(rows=[{"input_ids": [1, 2]}]))
    found = fault(error, trainer)
    assert found.startswith("step 1: out of memory in training") and "--per_device_train_batch_size 1" in found
    assert ("(2.00 GiB more were asked for)" in found) == ("GiB" in str(error))
    assert fault(RuntimeError("shapes do not fit"), trainer) == ""


def test_another_error_comes_through_as_it_is(make):
    trainer = make("other", eval_strategy="no")
    trainer.add_callback(At(1, raising(RuntimeError("shapes do not fit"))))
    with pytest.raises(RuntimeError, match="shapes do not fit") as caught:
        trainer.train()
    assert not isinstance(caught.value, RecipeError)


def test_a_data_worker_that_is_killed_is_named_with_what_helps(make):
    trainer = make("worker", dataloader_num_workers=1, eval_strategy="no", max_steps=200, save_strategy="no")

    def kill():
        import multiprocessing

        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
            child.join()

    trainer.add_callback(At(2, kill))
    with pytest.raises(RecipeError, match=r"^step \d+: a data worker \(pid \d+\) was killed.*--dataloader_num_workers 0 .*no checkpoint"):
        trainer.train()


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    """Far forward, then before 1970 began: the same losses, the same checkpoints, speeds above 0, lines of progress that can be read."""
    real, now, found, jumps = time.time, [0.0], {}, iter([0, 1e9, -3e9, 5e8])
    options = dict(max_steps=4, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2)
    for name in ("steady", "jumping"):
        trainer = found[name] = trainer_of("full-llama", tmp_path / name, **options)
        if name == "jumping":
            monkeypatch.setattr(time, "time", lambda: real() + now[0])
            trainer.add_callback(Always(lambda: now.__setitem__(0, next(jumps))))
        told_in_lines(trainer)
        trainer.train()
    losses = [[(e["step"], e["loss"]) for e in trainer.state.log_history if "loss" in e] for trainer in found.values()]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    speeds = [e["supervised_tokens_per_second"] for e in found["jumping"].state.log_history if "loss" in e]
    assert all(0 < speed < 1e9 for speed in speeds)
    assert {p.name for p in (tmp_path / "jumping").glob("*-*")} == {p.name for p in (tmp_path / "steady").glob("*-*")}


def full(*args):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", ["metrics.json", "report.html"])
def test_a_full_disk_leaves_a_run_file_as_it_was(tmp_path, monkeypatch, name):
    run = Run(tmp_path)
    run.write_text(name, "before")
    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(RecipeError, match=rf"{name}: it could not be written, what was there stays: No space left on device"):
        run.write_text(name, "after")
    assert (tmp_path / name).read_text() == "before" and [p.name for p in tmp_path.iterdir()] == [name]
