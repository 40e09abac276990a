"""What is printed while a model trains: few lines, aligned, with both losses; nothing of transformers' dictionaries."""

from types import SimpleNamespace

import pytest
from steps import trainer_of

from sft_recipes.progress import Bar, Lines, told_in_lines


@pytest.mark.parametrize("quiet", [True, False], ids=["no terminal", "terminal"])
def test_a_run_prints_a_table_of_its_steps(tmp_path, capsys, quiet):
    options = dict(max_steps=4, per_device_train_batch_size=4, eval_strategy="steps", eval_steps=2, disable_tqdm=quiet)
    trainer = trainer_of("full-llama", tmp_path, **options)
    told_in_lines(trainer)
    assert any(isinstance(callback, Bar) for callback in trainer.callback_handler.callbacks) is not quiet
    trainer.train()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step", "loss", "loss_all", "grad_norm", "learning_rate", "tokens", "padding"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "2", "3", "4"]
    assert lines[3].startswith("   2  held-out: eval_loss ") and "runtime" not in lines[3]
    assert {len(line) for line in lines if "held-out" not in line} == {len(lines[0])} and len(lines[0]) <= 80


def test_a_long_run_prints_about_twenty_lines(capsys):
    lines, control = Lines(), None
    lines.on_train_begin(None, None, control)
    for step in range(10, 5001, 10):
        state = SimpleNamespace(is_world_process_zero=True, global_step=step, max_steps=5000)
        lines.on_log(None, state, control, logs={"loss": 1.0, "grad_norm": 0.5})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 21 and printed[1].split() == ["10", "1.000", "0.500"] and printed[-1].split()[0] == "4,760"


def test_other_processes_and_evaluations_before_training_print_nothing(capsys):
    lines = Lines()
    lines.on_train_begin(None, None, None)
    for first, step, logs in ((False, 5, {"loss": 1.0}), (True, 0, {"eval_loss": 1.0})):
        state = SimpleNamespace(is_world_process_zero=first, global_step=step, max_steps=0 if first else 10)
        lines.on_log(None, state, None, logs=logs)
    assert capsys.readouterr().out == ""
