"""A token is in nothing that a run writes or prints: not its folder, its checkpoints, its report, its log, its tracker's files."""

import sys

import pytest
import wandb
from typer.testing import CliRunner

from sft_recipes.cli import app
from sft_recipes.export import deployment
from sft_recipes.export.proof import compare
from sft_recipes.public import public, typed
from sft_recipes.report import write_report

TOKENS = {name: f"{start}{name.capitalize() * 12}" for name, start in {"hub": "hf_", "env": "hf_", "wandb": "", "url": ""}.items()}


def _refusing(work):
    """Does its work, then raises an error that quotes a token, as upstream's may."""

    def run(*args):
        work(*args)
        raise OSError(f"https://me:{TOKENS['url']}@example.com refused Bearer {TOKENS['env']}")

    return run


def test_a_real_run_keeps_every_token_to_itself(small_base, jsonl, chats, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKENS["env"])
    monkeypatch.setenv("WANDB_API_KEY", TOKENS["wandb"])
    monkeypatch.setenv("HF_ENDPOINT", f"https://me:{TOKENS['url']}@example.com")
    monkeypatch.setattr("sft_recipes.trainer.write_report", _refusing(write_report))
    monkeypatch.setattr(deployment, "prove", lambda merged, record, *args: compare(merged, record))  # without a process of its own: 8 s
    data = jsonl(chats(12))
    small = "--scale tiny --max_steps 1 --save_steps 1 --save_strategy steps --eval_strategy no --max_new_tokens 2 --held_out 2".split()
    words = ["train", "gemma-tools", *small, "--model", small_base, "--data", data, "--retain", data, "--hub_token", TOKENS["hub"]]
    monkeypatch.setattr(sys, "argv", ["sft-recipes", *words])
    result = CliRunner().invoke(app, words)
    wandb.teardown()  # its service has written everything
    out, err = capfd.readouterr()
    said = f"{out}{err}{result.stdout}{result.stderr}"
    written = {file: file.read_bytes() for file in (tmp_path / "runs").rglob("*") if file.is_file()}
    assert result.exit_code == 0 and "report.html was not written: OSError: https://me:***@example.com" in said, said[-2000:]
    assert {"progress.json", "report.html", "recipe.json"} <= {file.name for file in written} and any(f.suffix == ".wandb" for f in written)
    for name, token in TOKENS.items():
        assert token not in said, name
        found = [str(file) for file, content in written.items() if token.encode() in content]
        assert not found, (name, found)


def test_a_fault_that_quotes_a_token_hides_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for word in (TOKENS["hub"], f"https://me:{TOKENS['url']}@example.com"):
        result = CliRunner().invoke(app, ["check", "gemma-tools", word])
        assert result.exit_code == 1 and "***" in result.stderr and word not in result.stderr


@pytest.mark.parametrize(
    ("words", "secret"),
    [
        (["train", "x", "--hub_token", "abc"], True),
        (["train", "x", "--hub-token=abc"], True),
        (["train", "x", "--data", f"https://{TOKENS['hub']}@huggingface.co"], True),
        (["train", "x", "--data", "https://me:word@example.com"], True),
        (["train", "x", "--stop_token", "<eos>", "--max_new_tokens", "9"], False),
    ],
)
def test_a_command_line_with_a_secret_is_known(words, secret):
    assert typed(words) is secret


def test_an_address_keeps_all_but_its_password():
    assert public("https://me:word@example.com/a b:c@d") == "https://me:***@example.com/a b:c@d"
