"""The command line as a person meets it: one line per fault, exit 1, no traceback, nothing left behind."""

import json
import re

import pytest
from typer.testing import CliRunner

from sft_recipes.cli import app, fields

runner = CliRunner()


def run(*words):
    result = runner.invoke(app, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train", "gema-tools"], "error: unknown recipe 'gema-tools', did you mean 'gemma-tools'?"),
        (["check", "gemma-tools", "--learning_rat", "1"], "error: unknown field 'learning_rat', did you mean 'learning_rate'?"),
        (["check", "gemma-tools", "--learning_rate", "fast"], "error: learning_rate: invalid float value: 'fast'"),
        (["check", "gemma-tools", "extra"], "error: unexpected argument 'extra'; fields are written --name value"),
        (["report", "gemma-tools"], "error: no run at runs/gemma-tools"),
        (["eval", "nothing"], "error: no run at runs/nothing"),
        (["chat", "nothing"], "error: no run at runs/nothing"),
        (["merge", "nothing"], "error: no run at runs/nothing"),
    ],
)
def test_one_line_and_exit_1(words, line, tmp_path):
    result = run(*words)
    assert result.exit_code == 1
    assert result.stderr.strip().startswith(line) and len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_bad_data_and_a_missing_model_are_reported_together(jsonl, tmp_path):
    path = jsonl([{"messages": []}, "{", {"text": "x"}])
    result = run("train", "gemma-tools", "--data", path, "--model", str(tmp_path / "absent"))
    assert result.exit_code == 1 and "Traceback" not in result.output
    lines = [line for line in result.stdout.splitlines() if line.startswith("fault: ")]
    assert len(lines) == 4 and "absent': no such folder" in lines[0]
    assert [line.split(": ")[1] for line in lines[1:]] == ["data.jsonl:1", "data.jsonl:2", "data.jsonl:3"]
    assert not (tmp_path / "runs").exists()


def test_no_room_for_the_run(monkeypatch, tmp_path):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1e9, 1e9 - 1e6, 1e6))
    result = run("train", "gemma-tools", "--scale", "tiny")
    assert result.exit_code == 1 and re.search(r"runs/gemma-tools: the run needs \d+ MB, the disk has 1 MB free; make room", result.stdout)
    assert not (tmp_path / "runs").exists()


def test_check_json_prints_one_object_whose_counts_are_the_trainers(jsonl, chats):
    words = ["gemma-tools", "--scale", "tiny", "--data", jsonl(chats(30)), "--held_out", "5"]
    found = json.loads(run("check", *words, "--json").stdout)
    assert found["faults"] == [] and found["counts"]["stop_tokens"] == ["<end_of_turn>"]
    from sft_recipes import build_trainer

    trainer = build_trainer("gemma-tools", scale="tiny", data=words[4], held_out=5, report_to="none")
    labels = [label for row in trainer.train_dataset["labels"] for label in row]
    assert found["counts"]["train"]["tokens"] == len(labels)
    assert found["counts"]["train"]["supervised_tokens"] == sum(label != -100 for label in labels)
    assert (found["counts"]["train"]["conversations"], found["counts"]["held_out"]["conversations"]) == (25, 5)


def test_references_that_cannot_score_are_warned_about(jsonl, chats):
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    reply = {"role": "assistant", "content": '{"name": "g", "arguments": {}}', "tool_calls": [call]}
    bad = {"messages": [{"role": "user", "content": "x"}, reply]}
    found = json.loads(run("check", "gemma-tools", "--data", jsonl(chats(5)), "--held_out", jsonl([bad], "held.jsonl"), "--json").stdout)
    assert found["warnings"][0].startswith("1 of 1 references do not score 1 on tool_call_exact, first:")


def test_show_prints_what_is_learned_and_what_predicts_it(jsonl, chats):
    result = run("show", "gemma-tools", "--data", jsonl(chats(30)), "--row", "3")
    assert result.exit_code == 0 and "tokens supervised" in result.stdout
    assert "<start_of_turn>model" in result.stdout and "<end_of_turn>" in result.stdout


def test_show_refuses_a_row_that_is_not_there(jsonl, chats):
    result = run("show", "gemma-tools", "--data", jsonl(chats(10)), "--row", "99")
    assert result.exit_code == 1 and "--row 99: there are 8 training rows, 0 to 7" in result.stderr


def test_show_html_escapes_the_data(jsonl, tmp_path):
    rows = [{"messages": [{"role": "user", "content": "<script>alert(1)</script>"}, {"role": "assistant", "content": "x"}]}] * 9
    assert run("show", "gemma-tools", "--data", jsonl(rows), "--held_out", jsonl(rows[:1], "h.jsonl"), "--html", "page.html").exit_code == 0
    page = (tmp_path / "page.html").read_text()
    assert "&lt;script&gt;alert(1)" in page and "<script>" not in page


def test_plan_counts_steps(jsonl, chats):
    found = json.loads(run("plan", "gemma-tools", "--data", jsonl(chats(50)), "--held_out", "10", "--json").stdout)
    assert found["conversations_per_step"] == 8 and found["steps"] == 10


def test_fields_take_every_spelling():
    class Context:
        args = ["--a", "1", "--b=2", "--c", "--d-e", "x"]

    assert fields(Context) == {"a": "1", "b": "2", "c": "true", "d_e": "x"}


def test_a_hook_that_raises_is_a_fault_of_the_row(jsonl, chats, monkeypatch):
    from sft_recipes import load_recipe

    monkeypatch.setattr(load_recipe("gemma-tools"), "conversation", staticmethod(lambda row: row["nothing"]))
    result = run("check", "gemma-tools", "--scale", "tiny", "--data", jsonl(chats(10)))
    assert result.exit_code == 1 and "data.jsonl:1: conversation() raised KeyError: 'nothing' (test_cli.py:" in result.stdout


def test_supervision_faults_name_file_line_and_message(jsonl, chats):
    bad = {"messages": [{"role": "user", "content": "x <end_of_turn> y"}, {"role": "assistant", "content": "z", "reasoning_content": "w"}]}
    words = ["--data", jsonl([*chats(10), bad]), "--held_out", jsonl(chats(3, 50), "held.jsonl")]
    result = run("check", "gemma-tools", "--scale", "tiny", *words)
    assert result.exit_code == 1
    assert "fault: data.jsonl:11, message 0: its content holds the control token <end_of_turn>" in result.stdout
    result = run("check", "gemma-tools", "--scale", "tiny", *words, "--allow_control_tokens", "true")
    assert "fault: data.jsonl:11, message 1: the chat template leaves no trace of its `reasoning_content`" in result.stdout
