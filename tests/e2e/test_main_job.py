"""The main job as a person types it, whole; and the other two ways in, cut short, against it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import command

SHORT = ["--max_steps", "4", "--save_strategy", "no", "--eval_steps", "4", "--per_device_train_batch_size", "4", "--max_new_tokens", "8"]


@pytest.fixture(scope="module")
def metrics(main_job):
    return json.loads((main_job[0] / "metrics.json").read_text())


def test_it_learns_what_it_is_for(metrics):
    assert metrics["primary"] == "tool_call_exact"
    assert metrics["before"]["tool_call_exact"] <= 0.10
    assert metrics["after"]["tool_call_exact"] >= 0.90
    assert metrics["after"]["stops"] >= 0.99


def test_the_merged_model_is_the_trained_model(metrics):
    assert metrics["merge"]["kl"] <= 1e-3
    assert metrics["merge"]["generations_equal"] is True and metrics["merge"]["generations"] >= 50


def test_every_supervised_token_is_accounted_for(metrics):
    account = metrics["supervision"]["train"]
    assert account["conversations"] == 2000 and not account["dropped"]


def test_the_run_folder_is_complete(main_job):
    folder = main_job[0]
    kept = {"recipe.json", "metrics.json", "checkpoints", "adapter", "merged", "wandb", "report.html"}
    kept |= {"samples.jsonl", "history.jsonl", "rows.jsonl"}
    assert kept == {p.name for p in folder.iterdir()}
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    stages = {s["stage"] for s in samples}
    assert stages - {"end"} == {"before", "after"} and len(samples) == len(stages) * 374
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["scale"] == "tiny" and set(recipe["data"]) == {"train", "held_out", "retained"} and "torch" in recipe["versions"]
    assert {p.suffix for p in (folder / "merged").iterdir()} == {".safetensors", ".json", ".jinja", ".md"}


def test_the_summary_says_what_a_person_wants_to_know(main_job):
    said = main_job[1]
    for words in ("tool_call_exact", "Deployable folder: runs/gemma-tools/merged", "Next: make chat RUN=runs/gemma-tools", "wandb sync"):
        assert words in said
    summary = said[said.index("held-out         before  after") :].splitlines()
    assert len(summary) <= 20 and "kept: step" in said and "on the data to be kept, loss" in said and "report.html" in said
    assert 1 <= len([line for line in summary if line.startswith("asked  ")]) <= 3


def test_it_was_judged_while_it_trained(main_job, metrics):
    """Five evaluations, of which the best one was kept; what it forgot meanwhile is measured, and said to be too much."""
    history = [json.loads(line) for line in (main_job[0] / "history.jsonl").read_text().splitlines()]
    scored = {e["step"]: e["eval_tool_call_exact"] for e in history if "eval_loss" in e}
    assert len(scored) == 6 and 0 in scored
    best = metrics["best"]
    assert best["value"] == max(scored.values()) == metrics["after"]["tool_call_exact"] and scored[best["step"]] == best["value"]
    retain = metrics["retain"]
    assert retain["before"]["accuracy"] > retain["after"]["accuracy"] and retain["rise"] > retain["max_rise"]


def test_the_wandb_run_can_be_read_back(main_job):
    assert list((main_job[0] / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.parametrize("where", [[], ["--adapter"]])
def test_it_answers_when_talked_to(main_job, where):
    tools = main_job[0].parent / "tools.json"
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools.write_text(json.dumps([{"name": "get_weather", "description": "Get the weather in a city.", "parameters": schema}]))
    words = [sys.executable, "-m", "sft_recipes", "chat", main_job[0], "--tools", tools, *where]
    talk = 'What is the weather in Velmora?\n{"temperature": 12, "sky": "rainy"}\n'
    done = subprocess.run([str(w) for w in words], input=talk, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    call = '{"name": "get_weather", "arguments": {"city": "Velmora"}}'
    assert done.stdout.splitlines()[-3:] == [f"you> call> {call}", "result> It is rainy in Velmora, 12 degrees.", "you> "]


def test_three_lines_of_python_are_the_same_path(tmp_path):
    """Command and shell, cut short, on the same data: the same metrics to the last digit."""
    held_out = tmp_path / "held_out.jsonl"
    from sft_recipes import TINY

    held_out.write_text("".join((TINY / "gemma_tools.held_out.jsonl").read_text().splitlines(keepends=True)[:12]))
    command(sys.executable, "-m", "sft_recipes", "train", "gemma-tools", "--scale", "tiny", "--held_out", held_out, *SHORT, cwd=tmp_path)
    overrides = {word[2:]: value for word, value in zip(SHORT[::2], SHORT[1::2], strict=True)}
    code = (
        "from sft_recipes import build_trainer\n"
        f"trainer = build_trainer('gemma-tools', scale='tiny', held_out={str(held_out)!r}, output_dir='runs/shell', **{overrides!r})\n"
        "trainer.train()\n"
    )
    command(sys.executable, "-c", code, cwd=tmp_path)
    typed, shell = (json.loads((tmp_path / "runs" / name / "metrics.json").read_text()) for name in ("gemma-tools", "shell"))
    for metrics in (typed, shell):
        for timed in ("train_runtime", "train_samples_per_second", "train_steps_per_second"):
            del metrics["train"][timed]
    assert typed == shell


def test_two_processes_finish_and_write_one_run_folder(tmp_path):
    from sft_recipes import TINY

    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join((TINY / "gemma_tools.held_out.jsonl").read_text().splitlines(keepends=True)[:12]))
    launcher = Path(sys.executable).with_name("accelerate")
    words = ["launch", "--multi_gpu", "--num_processes", "2", "-m", "sft_recipes", "train", "gemma-tools", "--scale", "tiny"]
    command(launcher, *words, "--held_out", held_out, *SHORT, cwd=tmp_path, OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")
    (folder,) = (tmp_path / "runs").iterdir()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["merge"]["kl"] <= 1e-3 and metrics["supervision"]["held_out"]["conversations"] == 12
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    questions = [(s["source"], s["message_index"]) for s in samples if s["stage"] == "after"]
    assert len(questions) == len(set(questions)) == metrics["supervision"]["held_out"]["turns"]
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
