"""A run that was interrupted and goes on is the run that was not: weights bit for bit, scores, history, the choice of the best."""

import json
import os
import signal

import pytest
import torch

from sft_recipes import RecipeError, build_trainer, checkpoints
from sft_recipes.checkpoints import folder as placing
from sft_recipes.stopping import Stopped

RUN = dict(
    scale="tiny",
    report_to="none",
    per_device_train_batch_size=4,
    max_new_tokens=4,
    held_out=5,
    num_train_epochs=2,
    max_steps=9,  # epochs end after 6, and in the middle
    learning_rate=1e-2,
    neftune_noise_alpha=5,
    eval_strategy="steps",
    eval_steps=3,
    save_strategy="steps",
    save_steps=3,
    logging_steps=2,
    packing="none",
    retain=None,
)


@pytest.fixture(scope="module")
def make(small_base, chats, tmp_path_factory):
    """Trainers of one run, each in the folder it is given, with dropout and noise; none is deployed, which kill.py does."""
    from peft import LoraConfig

    adapter = LoraConfig(r=4, lora_dropout=0.1, target_modules=r".*language_model.*q_proj", task_type="CAUSAL_LM")
    folder = tmp_path_factory.mktemp("lasting")

    def build(name, **overrides):
        given = {**RUN, "model": small_base, "adapter": adapter, "train_dataset": chats(29), "output_dir": folder / name, **overrides}
        trainer = build_trainer("gemma-tools", **given)
        trainer._deploy = lambda learned, lines: {}
        trainer._report = lambda: None
        return trainer

    return build


def result(trainer):
    """What a run leaves that the clock does not change."""
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    metrics = {key: trainer.metrics[key] for key in ("before", "after", "best", "supervision", "steps")}
    timed = ("runtime", "per_second", "preparation_time", "flos", "train_loss")
    logged = [entry for entry in trainer.run.read_lines("history.jsonl") if "train_runtime" not in entry]
    history = [{k: v for k, v in entry.items() if not k.endswith(timed)} for entry in logged]
    return weights, metrics, history, (trainer.run.folder / "samples.jsonl").read_text()


def assert_same(found, expected):
    assert found[0].keys() == expected[0].keys()
    assert [name for name, tensor in expected[0].items() if not torch.equal(tensor, found[0][name])] == []
    assert found[1:3] == expected[1:3]
    assert found[3] == expected[3]


@pytest.fixture(scope="module")
def whole(make):
    trainer = make("whole")
    trainer.train()
    return result(trainer)


class Killed(BaseException):
    pass


def killed(trainer, method, times=1):
    """The run, ended without a word the n-th time that a method is reached."""
    calls, inner = 0, getattr(trainer, method)

    def reached(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == times:
            raise Killed
        return inner(*args, **kwargs)

    setattr(trainer, method, reached)
    with pytest.raises(Killed):
        trainer.train()


MOMENTS = {
    "in the first step": ("training_step", 1),
    "between checkpoints": ("training_step", 5),
    "in the second epoch": ("training_step", 8),
    "in an evaluation": ("_generated", 4),
    "before the second checkpoint is finished": ("_finish", 2),
    "when the best is loaded": ("_load_best_model", 1),
    "before the merge": ("_deploy", 1),
}


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.replace(" ", "-"))
def test_a_killed_run_goes_on_as_if_nothing_had_been(make, whole, moment):
    name = moment.replace(" ", "-")
    killed(make(name), *MOMENTS[moment])
    trainer = make(name)
    trainer.train()
    assert_same(result(trainer), whole)
    assert not trainer.run.folder.with_name(f"{name}.1").exists()


def told(trainer, method, times, after=False):
    """The run, told to end by a real signal when a method is reached, or left, for the n-th time; what it said."""
    calls, inner = 0, getattr(trainer, method)

    def reached(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == times and not after:
            os.kill(os.getpid(), signal.SIGTERM)
        found = inner(*args, **kwargs)
        if calls == times and after:
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    setattr(trainer, method, reached)
    with pytest.raises(Stopped) as stopped:
        trainer.train()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # as it was before
    return str(stopped.value)


SIGNALS = {
    "in a step": ("training_step", 4, 4),
    "in the last step of an epoch": ("training_step", 6, 6),
    "in the last step of all": ("training_step", 9, 9),
    "in an evaluation": ("prediction_step", 3, 6),
    "while it generates": ("_generated", 3, 6),
    "in the last evaluation": ("_generated", 4, 9),
    "in a save": ("_finish", 1, None),
}


@pytest.mark.parametrize("moment", SIGNALS, ids=lambda moment: moment.replace(" ", "-"))
def test_a_run_that_is_told_to_end_saves_and_goes_on_as_if_nothing_had_been(make, whole, moment):
    method, times, saved = SIGNALS[moment]
    name = f"told-{moment.replace(' ', '-')}"
    trainer = make(name)
    said = told(trainer, method, times)
    step = saved or trainer.state.global_step
    assert said == f"SIGTERM: step {step} is saved in {trainer.run.checkpoints / f'checkpoint-{step}'}"
    trainer = make(name)
    trainer.train()
    assert_same(result(trainer), whole)


def test_at_the_end_of_an_epoch_its_evaluation_is_not_forgotten(make):
    """The signal and a save come after the step, the evaluation of the epoch after both."""
    options = dict(eval_strategy="epoch", save_strategy="steps", save_steps=6, load_best_model_at_end=False, max_steps=-1)
    whole = make("epochs", **options)
    whole.train()
    for name, method, times in (("epochs-1", "training_step", 6), ("epochs-2", "training_step", 12), ("epochs-3", "_generated", 3)):
        told(make(name, **options), method, times)
        again = make(name, **options)
        again.train()
        assert_same(result(again), result(whole))


def test_after_training_a_signal_ends_it_at_once(make, whole):
    trainer = make("told-merging")
    trainer._deploy = lambda learned, lines: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Stopped, match="SIGINT"):
        trainer.train()
    again = make("told-merging")
    again.train()
    assert_same(result(again), whole)


def test_the_score_that_early_stopping_waits_for_is_waited_for_after_resuming(make):
    """transformers forgets how often there was no better one, unless it is told to keep callbacks."""
    options = dict(patience=2, eval_steps=1, save_steps=1, learning_rate=1e-9)
    whole = make("patient", **options)
    whole.train()
    killed(make("patient-2", **options), "training_step", 3)
    again = make("patient-2", **options)
    again.train()
    assert again.state.global_step == whole.state.global_step < 9


# What is not trusted


def broken(checkpoint, how):
    if how == "cut off":
        file = checkpoint / "optimizer.pt"
        file.write_bytes(file.read_bytes()[:-1])
        return "optimizer.pt has"
    if how == "a bit turned":
        file = checkpoint / "adapter_model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        return "adapter_model.safetensors is not what was written: its SHA-256 differs"
    if how == "a file lost":
        (checkpoint / "trainer_state.json").unlink()
        return "trainer_state.json is missing"
    (checkpoint / "manifest.json").unlink()
    return "it has no manifest.json"


@pytest.fixture(scope="module")
def interrupted(make):
    trainer = make("interrupted")
    killed(trainer, "training_step", 8)
    return trainer.run.checkpoints


@pytest.mark.parametrize("how", ["cut off", "a bit turned", "a file lost", "unfinished"])
def test_a_damaged_checkpoint_is_not_continued_from_and_that_is_said(interrupted, tmp_path, how):
    import shutil

    shutil.copytree(interrupted, tmp_path / "checkpoints")
    said = broken(tmp_path / "checkpoints" / "checkpoint-6", how)
    found = checkpoints.newest(tmp_path / "checkpoints")
    assert found.checkpoint == tmp_path / "checkpoints" / "checkpoint-3"
    assert len(found.refused) == 1 and f"checkpoint-6 is not continued from: {said}" in found.refused[0]


def test_it_goes_on_from_the_one_before_and_ends_the_same(make, whole, capsys):
    trainer = make("damaged")
    killed(trainer, "training_step", 8)
    broken(trainer.run.checkpoints / "checkpoint-6", "a bit turned")
    again = make("damaged")
    again.train()
    assert "checkpoint-6 is not continued from: adapter_model.safetensors is not what was written" in capsys.readouterr().err
    assert_same(result(again), whole)


def test_a_checkpoint_that_is_named_is_held_to_its_manifest(make, capsys):
    """And nothing of the run in the folder has changed then; a whole one that is named is continued from, whichever is the newest."""
    trainer = make("named")
    killed(trainer, "training_step", 8)
    described = (trainer.run.folder / "recipe.json").read_text()
    said = broken(trainer.run.checkpoints / "checkpoint-6", "a bit turned")
    with pytest.raises(RecipeError, match=rf"checkpoint-6 is not continued from: {said}; --resume takes the newest good one"):
        make("named").train(resume_from_checkpoint=str(trainer.run.checkpoints / "checkpoint-6"))
    assert (trainer.run.folder / "recipe.json").read_text() == described
    again = make("named")
    killed_at = trainer.run.checkpoints / "checkpoint-3"
    killed_again(again, killed_at)
    assert f"continued from {killed_at}" in capsys.readouterr().err and again.state.global_step == 3


def killed_again(trainer, checkpoint):
    """A run that goes on from a named checkpoint, ended before its next step."""

    def reached(*args, **kwargs):
        raise Killed

    trainer.training_step = reached
    with pytest.raises(Killed):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_a_run_folder_that_was_moved_keeps_its_best_checkpoint(make):
    """The best is the first here, as the highest loss is asked for: rotation would delete it, were it looked for where it was."""
    options = dict(metric_for_best_model="eval_loss", greater_is_better=True, save_total_limit=1)
    before = make("at-first", **options)
    killed(before, "training_step", 8)
    assert sorted(path.name for path in before.run.checkpoints.glob("check*")) == ["checkpoint-3", "checkpoint-6"]
    before.run.folder.rename(before.run.folder.with_name("moved"))
    after = make("moved", **options)
    after.train()
    assert after.kept_step == 3 and after.state.best_model_checkpoint == str(after.run.checkpoints / "checkpoint-3")
    assert sorted(path.name for path in after.run.checkpoints.glob("check*")) == ["checkpoint-3"]
    assert not before.run.folder.exists()


def test_a_best_checkpoint_that_is_lost_is_not_deployed(make, capsys):
    trainer = make("lost")
    load = trainer._load_best_model

    def damage():
        broken(trainer.run.folder / trainer.state.best_model_checkpoint, "a bit turned")
        load()

    trainer._load_best_model = damage
    trainer.train()
    assert "is lost: adapter_model.safetensors is not what was written" in trainer.metrics["best"]["said"]
    assert "the last step's weights are deployed" in capsys.readouterr().err
    assert trainer.kept_step == 9


def test_pickles_are_not_kept(interrupted):
    """`training_args.bin` holds every token that was given, and nothing reads it."""
    assert not list(interrupted.rglob("training_args.bin"))
    assert json.loads((interrupted / "checkpoint-6" / "manifest.json").read_text())["files"].keys() >= {"optimizer.pt", "progress.json"}


# The folder


def test_the_newest_is_whole_before_an_old_one_goes(make, monkeypatch):
    trainer, seen = make("rotating", save_total_limit=1, eval_strategy="no", max_steps=3, save_steps=1), []
    leave = placing._leave

    def leaving(checkpoint):
        seen.append((checkpoint.name, checkpoints.newest(checkpoint.parent).checkpoint.name))
        leave(checkpoint)

    monkeypatch.setattr(placing, "_leave", leaving)
    trainer.train()
    assert seen == [("checkpoint-1", "checkpoint-2"), ("checkpoint-2", "checkpoint-3")]
    assert sorted(path.name for path in trainer.run.checkpoints.glob("check*")) == ["checkpoint-3"]


def test_a_clock_that_jumps_deletes_no_newer_checkpoint(tmp_path):
    """transformers goes by the time on the disk."""
    for step in (9, 10, 11):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "x").write_text("x")
        checkpoints.seal(folder, checkpoints.digests(folder, ["x"]))
        os.utime(folder, (2e9 - step * 1e6,) * 2)
    checkpoints.rotate(tmp_path, 2, tmp_path / "checkpoint-9")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-11", "checkpoint-9"]


def test_a_disk_that_is_too_small_is_said_before_training(make, monkeypatch):
    trainer = make("small-disk")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("usage", (), {"free": 1_000_000}))
    with pytest.raises(RecipeError, match=r"checkpoints: the run needs \d+ MB, the disk has 1 MB free; make room"):
        trainer.train()
    assert trainer.before is None and not (trainer.run.folder / "recipe.json").exists()


@pytest.mark.parametrize("writer", ["safetensors", "torch"])
def test_a_disk_that_fills_up_in_the_middle_of_a_save_takes_nothing(make, whole, writer):
    """The real writers, on a file system that takes no larger file: safetensors' in Rust, torch's in C++."""
    import resource

    trainer = make(f"full-{writer}")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    method = "save_model" if writer == "safetensors" else "_save_optimizer_and_scheduler"
    inner, calls = getattr(trainer, method), 0

    def filling(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls < 2:
            return inner(*args, **kwargs)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
        try:
            return inner(*args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    setattr(trainer, method, filling)
    with pytest.raises(RecipeError) as error:
        trainer.train()
    assert "checkpoint-6 could not be written, nothing of it is left: " in str(error.value)
    assert f"the last good checkpoint is {trainer.run.checkpoints / 'checkpoint-3'}" in str(error.value)
    assert [path.name for path in trainer.run.checkpoints.iterdir() if path.is_dir()] == ["checkpoint-3"]
    again = make(f"full-{writer}")
    again.train()
    assert_same(result(again), whole)


# Which run goes on


def test_another_run_is_not_gone_on_with_but_moved_aside(make, capsys):
    killed(make("other"), "training_step", 5)
    trainer = make("other", learning_rate=2e-2, max_steps=1)
    trainer.train()
    said = capsys.readouterr().err
    assert "holds a run that was not finished, and another one: " in said and "config.learning_rate: 0.01 then, 0.02 now" in said
    assert trainer.run.folder.with_name("other.1").is_dir()


def spoken():
    return [{"messages": [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": f"{i}"}]} for i in range(29)]


def test_a_run_on_data_that_a_function_makes_is_the_same_one(make, capsys):
    options = dict(train_dataset=None, data=spoken)
    killed(make("function", **options), "training_step", 5)
    make("function", **options).train()
    said = capsys.readouterr().err
    assert "continued from" in said and "moved aside" not in said


def test_asked_to_resume_another_run_it_warns_and_with_other_data_it_refuses(make, chats, capsys):
    killed(make("asked"), "training_step", 5)
    make("asked", max_steps=10).train(resume_from_checkpoint=True)
    assert "continued as another run than it began, its weights are neither's: config.max_steps: 9 then, 10 now" in capsys.readouterr().err
    with pytest.raises(RecipeError, match=r"cannot be continued: data.train: .*; train anew with --no-resume"):
        make("asked", train_dataset=chats(28)).train(resume_from_checkpoint=True)


def test_a_resumed_run_that_had_taken_all_its_steps_takes_no_more(make, whole):
    """transformers takes one more where the last step is not the last of its epoch."""
    killed(make("all-steps"), "_deploy")
    again = make("all-steps")
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 9
    assert_same(result(again), whole)
