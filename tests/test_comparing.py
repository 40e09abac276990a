"""Any model is scored on a recipe's held-out conversations as it would be served, beside others."""

import json
import shutil

import pytest
from bases import write_base
from test_cli import run as typed

from sft_recipes import RecipeError, build_trainer
from sft_recipes import evaluate as judging
from sft_recipes.prepare import prepare_held_out
from sft_recipes.revisit import comparing, reopen
from sft_recipes.run import Run

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}


def asked(city):
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": city}}}
    return {"messages": [{"role": "user", "content": f"{city}?"}, {"role": "assistant", "tool_calls": [call]}], "tools": [TOOL]}


@pytest.fixture(scope="module")
def finished(small_base, chats, tmp_path_factory):
    """A whole run, short, on data from files; its folder, the file of its held-out conversations, and what it measured."""
    folder = tmp_path_factory.mktemp("compared")
    for name, rows in (("train", chats(12)), ("held", chats(4, 50)), ("tools", [asked("Oslo"), asked("Bergen")])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = dict(data=str(folder / "train.jsonl"), held_out=str(folder / "held.jsonl"), model=small_base, output_dir=folder / "run")
    options = dict(report_to="none", max_steps=30, per_device_train_batch_size=4, save_strategy="no", learning_rate=1e-2)
    trainer = build_trainer("gemma-tools", scale="tiny", max_new_tokens=4, **data, **options)
    trainer.train()
    return trainer.run, trainer.metrics["after"]


@pytest.fixture(scope="module")
def judge(finished):
    """How the recipe's held-out conversations are named for models that are not the run's."""
    return dict(recipe="gemma-tools", scale="tiny", held_out=str(finished[0].folder.parent / "held.jsonl"), max_new_tokens=4)


def words(judge):
    return [word for key, value in judge.items() for word in (f"--{key}", str(value))]


def test_a_run_has_the_scores_it_was_trained_to(finished):
    run, after = finished
    found = json.loads(typed("eval", str(run.folder), "--json").stdout)
    assert found == {**after, "eval_loss": pytest.approx(after["eval_loss"], abs=1e-5)}


def test_the_adapter_on_its_base_scores_as_what_was_deployed(finished):
    run, after = finished
    assert comparing.evaluate(str(run.folder), adapter=True) == {**after, "eval_loss": pytest.approx(after["eval_loss"], abs=1e-5)}


def test_a_folder_is_a_model_like_any_other(finished, judge):
    """The deployed folder with nothing but its own tokenizer and templates, and the run with another's word for its data."""
    run, after = finished
    for name in (run.merged, run.folder):
        assert comparing.evaluate(str(name), **judge) == {**after, "eval_loss": pytest.approx(after["eval_loss"], abs=1e-5)}


def test_several_make_a_table(finished, small_base):
    """The model takes the conversations of the run beside it."""
    run, after = finished
    result = typed("eval", str(run.folder), small_base)
    said = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if not line.startswith(" ")}
    assert result.exit_code == 0 and {*after} <= said.keys() and said["stops"] == ["1.000", "0.000"]
    assert said["eval_loss"][0] == f"{after['eval_loss']:.3f}" < said["eval_loss"][1]


def test_the_best_of_each_line_is_bold(monkeypatch):
    import io

    from rich.console import Console

    from sft_recipes import screen

    text = io.StringIO()
    monkeypatch.setattr(screen, "out", Console(file=text, force_terminal=True, highlight=False))
    screen.print_compared({"a": {"exact": 0.9, "eval_loss": 0.5}, "b": {"exact": 0.2, "eval_loss": 0.25}, "c": {"eval_loss": 1.0}})
    assert "\x1b[1m0.900\x1b[0m" in text.getvalue() and "\x1b[1m0.250\x1b[0m" in text.getvalue()
    assert text.getvalue().count("\x1b[1m0") == 2 and "-" in text.getvalue().splitlines()[1]


def listened(monkeypatch):
    """What every model is asked, and where it may stop."""
    heard = []

    def generate(model, prompts, stop_ids, *args, **kwargs):
        heard.append((prompts, set(stop_ids)))
        return generated(model, prompts, stop_ids, *args, **kwargs)

    generated = judging.generate
    monkeypatch.setattr(judging, "generate", generate)
    return heard


def test_a_model_speaks_its_own_template_and_stops_where_it_says(finished, judge, small_base, tokenizer, tmp_path, monkeypatch):
    shutil.copytree(small_base, tmp_path / "base")
    (tmp_path / "base" / "generation_config.json").write_text('{"eos_token_id": [1, 106], "pad_token_id": 0}')
    heard = listened(monkeypatch)
    comparing.evaluate(str(tmp_path / "base"), **judge)
    (prompts, stops), first = heard[0], [{"role": "user", "content": "Say 50."}]
    assert stops == {1, 106}
    assert prompts[0] == tokenizer.apply_chat_template(first, add_generation_prompt=True, return_dict=False)


def test_a_model_without_a_template_wears_the_recipes(judge, tmp_path, monkeypatch):
    base, heard = write_base(tmp_path / "base", "gemma"), listened(monkeypatch)
    found = comparing.evaluate(base, **judge)
    assert {"tool_call_exact", "stops", "eval_loss"} <= found.keys() and found["eval_loss"] > 1
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(base).chat_template is None
    assert len(heard[0][1]) == 1  # what the recipe's template ends a turn in, as in a run of the recipe on it


def test_one_that_cannot_be_asked_is_named_and_the_other_scored(finished, judge, small_base):
    """Gemma 3's own template leaves tools out."""
    run = finished[0]
    tools = {**judge, "held_out": str(run.folder.parent / "tools.jsonl")}
    result = typed("eval", str(run.merged), small_base, *words(tools), "--json")
    assert result.exit_code == 1 and list(json.loads(result.stdout)) == [str(run.merged)]
    faults = result.stderr.strip().splitlines()
    assert all(line.startswith(f"error: {small_base}: ") for line in faults) and "tools.jsonl:1" in faults[0]
    assert faults[-1].endswith("--chat_template gemma3_tools judges it by the recipe's template")
    dressed = comparing.compare([small_base], **tools, chat_template="gemma3_tools")
    assert dressed.faults == [] and small_base in dressed.scores


def test_other_conversations_than_the_runs(finished, tmp_path):
    run = finished[0]
    other = comparing.evaluate(str(run.folder), held_out=str(run.folder.parent / "tools.jsonl"))
    assert other["eval_loss"] != finished[1]["eval_loss"]
    copy = Run(tmp_path / "copy")
    shutil.copytree(run.folder, copy.folder)
    copy.write("recipe.json", {**run.read("recipe.json"), "data": {"train": "x", "held_out": "y"}})
    found = comparing.compare([str(run.folder), str(copy.folder)])
    assert list(found.scores) == [str(run.folder)] and "the held-out data are not those of the run" in found.faults[0]
    said = run.read("recipe.json")
    copy.write("recipe.json", {**said, "overrides": {**said["overrides"], "held_out": str(run.folder.parent / "tools.jsonl")}})
    own = reopen(str(copy.folder))[1]
    again = prepare_held_out(own.trainer_class, own.recipe, own.config.max_length)
    copy.write("recipe.json", {**copy.read("recipe.json"), "data": {"train": "x", "held_out": again.held_out.hash}})
    with pytest.raises(RecipeError, match=r"the held-out conversations are not the same \(.*run: 4, .*copy: 2\).*--recipe NAME"):
        comparing.compare([str(run.folder), str(copy.folder)])


def test_names_that_cannot_be_judged_are_told_together(finished, judge, small_base, tmp_path, monkeypatch):
    monkeypatch.chdir(finished[0].folder.parent)
    assert typed("eval", small_base).stderr.strip().endswith("a model needs a recipe whose held-out conversations judge it: --recipe NAME")
    assert "Qwen/Qwen3-0.6B is no run; a model needs a recipe" in typed("eval", "Qwen/Qwen3-0.6B").stderr
    lines = typed("eval", "./rum", "run/adapter", str(tmp_path), "gemma/absent", *words(judge)).stderr.strip().splitlines()
    assert lines[0] == "error: no run at runs/rum, did you mean 'run'?"
    assert lines[1] == "error: run/adapter is an adapter: name its run, with --adapter"
    assert lines[2].startswith(f"error: {tmp_path} is neither a run") and "model 'gemma/absent': it is not in the cache" in lines[3]
    assert typed("eval", "--held_out", "x").stderr.strip() == "error: name a run or a model before any field"
