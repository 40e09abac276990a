"""What is printed while a model trains: few lines, aligned, with both losses; a reply at every evaluation, harmless and short."""

import io
from types import SimpleNamespace

import pytest
from rich.cells import cell_len
from rich.console import Console
from steps import trainer_of

from sft_recipes import progress
from sft_recipes.excerpt import contrasted, excerpt, right, spoken
from sft_recipes.progress import Bar, Lines, held_out, told_in_lines

PREPARED = SimpleNamespace(recipe=SimpleNamespace(primary="exact"))


def state_of(step, total=10, first=True):
    return SimpleNamespace(is_world_process_zero=first, global_step=step, max_steps=total)


def sample_of(asked, reply, exact, reference="yes"):
    question = SimpleNamespace(asked=asked, expected={"role": "assistant", "content": reference})
    return SimpleNamespace(question=question, reply_ids=reply, scores={"exact": exact})


def teller(*samples):
    """`Lines` of a trainer whose replies are text already."""
    tokenizer = SimpleNamespace(decode=lambda text: text)
    return Lines(SimpleNamespace(samples=list(samples), prepared=PREPARED, processing_class=tokenizer))


@pytest.mark.parametrize("quiet", [True, False], ids=["no terminal", "terminal"])
def test_a_run_prints_a_table_of_its_steps(tmp_path, capsys, quiet):
    options = dict(max_steps=4, per_device_train_batch_size=4, eval_strategy="steps", eval_steps=2, disable_tqdm=quiet)
    trainer = trainer_of("full-llama", tmp_path, **options)
    trainer.prepared, trainer.samples = PREPARED, [sample_of("Well?", trainer.processing_class("no")["input_ids"], 0.0)]
    told_in_lines(trainer)
    assert any(isinstance(callback, Bar) for callback in trainer.callback_handler.callbacks) is not quiet
    trainer.train()
    trainer.evaluate()  # of the model that is kept: its scores are in the summary
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:6] == ["step", "loss", "loss_all", "grad_norm", "learning_rate", "tokens"]
    steps = [line for line in lines[1:] if line[3] != " "]
    assert [line.split()[0] for line in steps] == ["1", "2", "2", "3", "4", "4"]
    assert [i for i, line in enumerate(lines) if "held-out: eval_loss " in line] == [3, 9] and "runtime" not in lines[3]
    assert [line.split()[0] for line in lines[4:7]] == ["asked", "wrong", "expected"]
    assert {len(line) for line in steps if "held-out" not in line} == {len(lines[0])} and len(lines[0]) <= 80


def test_all_columns_fit_a_terminal(capsys):
    lines = teller()
    lines.on_train_begin(None, state_of(0), None)
    lines.on_log(None, state_of(100_000, 200_000), None, logs=dict.fromkeys(progress.COLUMNS, 0.1))
    head, row = capsys.readouterr().out.splitlines()
    assert head.endswith("tokens  tokens/s") and len(head) == len(row) <= 80


def test_a_long_run_prints_about_twenty_lines(capsys):
    lines = teller()
    lines.on_train_begin(None, None, None)
    for step in range(10, 5001, 10):
        lines.on_log(None, state_of(step, 5000), None, logs={"loss": 1.0, "grad_norm": 0.5})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 21 and printed[1].split() == ["10", "1.000", "0.500"] and printed[-1].split()[0] == "4,760"


def test_other_processes_print_nothing(capsys):
    lines = teller(sample_of("?", "no", 0.0))
    lines.on_train_begin(None, None, None)
    for logs in ({"loss": 1.0}, {"eval_loss": 1.0}):
        lines.on_log(None, state_of(5, first=False), None, logs=logs)
    lines.on_evaluate(None, state_of(5, first=False), None, metrics={"eval_loss": 1.0})
    assert capsys.readouterr().out == ""


def test_every_evaluation_shows_another_reply_a_wrong_and_a_right_one_in_turn(capsys):
    lines = teller(*(sample_of(f"{i}?", f"reply {i}", float(i in (1, 3))) for i in range(5)))
    for step in range(6):
        lines.on_evaluate(None, state_of(step), None, metrics={"eval_loss": 1.0})
    lines.on_evaluate(None, state_of(6), None, metrics={"eval_retain_loss": 1.0})  # of other data
    told = [line.split() for line in capsys.readouterr().out.splitlines() if "reply" in line]
    assert told == [[verdict, "reply", i] for verdict, i in zip(["wrong", "right"] * 3, "012341", strict=True)]


def test_what_a_model_says_cannot_act_on_the_terminal(capsys):
    reply = "[bold]no[/bold] [/]\x1b[2J\x1b]0;owned\x07\r\n\u202e中文" + "中" * 200 + "\x9b31m"
    teller(sample_of("long " * 200 + "last words?", reply, 0.0)).on_evaluate(None, state_of(3), None, metrics={"eval_loss": 1.0})
    printed = capsys.readouterr().out
    lines = printed.split("\n")[:-1]
    assert len(lines) == 3 and all(cell_len(line) <= 100 for line in lines)
    assert lines[0].endswith("last words?") and r"[bold]no[/bold] [/]\x1b[2J\x1b]0;owned\x07\r↵ \u202e中文" in lines[1]
    assert not set(printed) & set("\x1b\x07\r\x9b\u202e") and lines[2].split() == ["expected", "yes"]


def test_colour_is_for_terminals(monkeypatch):
    for terminal in (True, False):
        file = io.StringIO()
        monkeypatch.setattr(progress, "out", Console(file=file, force_terminal=terminal, soft_wrap=True, width=80, _environ={}))
        teller(sample_of("?", "no", 0.0)).on_evaluate(None, state_of(3), None, metrics={"eval_loss": 1.0})
        assert ("\x1b[31mno" in file.getvalue()) is terminal and ("\x1b" in file.getvalue()) is terminal


def test_the_bar_is_one_line(capsys):
    bar = Bar("tool_call_exact")
    bar.on_log(None, state_of(0), None, logs={"eval_loss": 2.0, "eval_tool_call_exact": 0.015})  # before training
    bar.on_train_begin(None, state_of(300, 494), None)
    bar.on_log(None, state_of(310, 494), None, logs={"loss": 0.0321, "supervised_tokens_per_second": 1020.4})
    bar.on_log(None, state_of(310, 494), None, logs={"eval_loss": 0.02, "eval_tool_call_exact": 0.91})
    bar.on_step_end(None, state_of(340, 494), None)
    assert bar.training_bar.n == 340 and bar.training_bar.initial == 300  # of a resumed run, the rest is timed
    line = str(bar.training_bar)
    assert line.startswith("   340/494  loss 0.032  tool_call_exact 0.910  1,020 tokens/s  ") and line.endswith(" left") and len(line) < 80
    bar.on_train_end(None, state_of(494, 494), None)


def test_the_primary_may_be_the_loss():
    bar = Bar("eval_loss")
    bar.on_log(None, state_of(5), None, logs={"eval_loss": 2.0})
    assert bar.parts["score"] == "eval_loss 2.000  "
    assert right({"exact": 1.0}, "eval_loss") is right({"length": 1.0}, "length") is None and right({"exact": 0.5}, "exact") is False


def test_held_out_scores_without_their_parts_and_manner():
    logs = {
        "eval_loss": 1.0,
        "eval_exact": 0.5,
        "eval_exact_3_terms": 0.1,
        "eval_length": 9.0,
        "eval_retain_loss": 2.0,
        "eval_runtime": 3.0,
    }
    assert held_out({**logs, "epoch": 1.0}) == {"eval_loss": 1.0, "exact": 0.5, "retain_loss": 2.0}


def test_an_excerpt_has_its_columns_and_keeps_the_words_that_matter():
    assert excerpt("  short\ttext\n", 20) == "short⇥ text" and excerpt("", 5) == ""
    assert excerpt("one two three", 8) == "one two…" and excerpt("one two three", 8, last=True) == "…o three"
    assert excerpt("中文" * 50, 8) == "中文中…" and excerpt("\ud800", 9) == r"\ud800"


def test_a_reply_and_its_reference_are_shown_where_they_part():
    alike = "The very same words. " * 20
    reply, reference = contrasted(alike + "But not here.", alike + "And not here.", 60)
    assert "But not" in reply and "And not" in reference and cell_len(reply) <= 60 and reply[0] == reference[0] == "…"
    assert contrasted("no", "yes", 60) == ("no", "yes")


def test_a_message_is_spoken_as_content_and_calls():
    call = {"type": "function", "function": {"name": "f", "arguments": {"city": "Zürich"}}}
    assert spoken({"content": "Well.", "tool_calls": [call]}) == 'Well.\n{"name": "f", "arguments": {"city": "Zürich"}}'
    assert spoken({"content": None}) == spoken({}) == ""
