"""Real input: the Berkeley Function-Calling Leaderboard, converted to conversations, shown and trained on for a few steps."""

import json

import pytest
from conftest import REAL_DATA
from typer.testing import CliRunner

from benchmarks.bfcl import conversations
from sft_recipes import build_trainer
from sft_recipes.cli import app

pytestmark = pytest.mark.skipif(not (REAL_DATA / "bfcl").is_dir(), reason=f"no BFCL at {REAL_DATA / 'bfcl'}")


@pytest.fixture(scope="module")
def rows():
    return list(conversations(REAL_DATA / "bfcl"))


def test_all_of_it_converts(rows):
    assert len(rows) == 800
    types = json.dumps([row["tools"] for row in rows])
    assert '"type": "dict"' not in types and '"type": "object"' in types
    assert max(len(row["messages"][1]["tool_calls"]) for row in rows) >= 4


def test_show_prints_one_of_them(rows, jsonl):
    result = CliRunner().invoke(app, ["show", "gemma-tools", "--scale", "tiny", "--data", jsonl(rows[:40]), "--row", "0"])
    assert result.exit_code == 0, result.output
    assert "tokens supervised" in result.stdout and "math.factorial" in result.stdout


def test_the_tiny_model_trains_on_it_and_the_loss_falls(rows, tmp_path, monkeypatch):
    from trl import SFTTrainer

    monkeypatch.chdir(tmp_path)
    trainer = build_trainer(
        "gemma-tools",
        scale="tiny",
        train_dataset=[row for row in rows if len(json.dumps(row)) < 1500][:48],
        report_to="none",
        max_steps=6,
        per_device_train_batch_size=4,
        logging_steps=1,
        save_strategy="no",
    )
    SFTTrainer.train(trainer)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 6 and losses[-1] < losses[0]
