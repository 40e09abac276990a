"""A run on two processes is the run of one: the same losses, metrics, generations and merged model, in one folder.

Each engine is started once, with `accelerate launch` and the configuration that is shipped, on two CPU processes (gloo). The runs end
with the best checkpoint, an earlier one or the last; their weights lie in parts where the engine parts them.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import several
from conftest import ROOT
from safetensors.torch import load_file

ENGINES = ["ddp", "fsdp2"]
ALSO = ["zero2", "zero3"]  # `make several`, where DeepSpeed is installed
LOSSES = ("loss", "grad_norm", "eval_loss", "loss_all", "learning_rate", "supervised_tokens_per_step", "eval_token_accuracy")


@pytest.fixture(scope="module")
def alone(small_base, tmp_path_factory):
    """The runs of one process, of twice the micro-batches a step."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sft_recipes.export.deployment.prove", several.prove_here)
        for kind in several.KINDS:
            several.run(kind, small_base, folder, gradient_accumulation_steps=2)
    return folder


@pytest.fixture(scope="module")
def on_two(small_base, tmp_path_factory):
    """Starts an engine once, and gives the folder of its runs."""
    started = {}

    def start(engine, kinds=tuple(several.KINDS)):
        if (engine, kinds) not in started:
            folder = tmp_path_factory.mktemp("two") / engine
            launched = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", ROOT / "launch" / f"{engine}.yaml"]
            words = [*launched, "--num_processes", "2", "--main_process_port", "0", several.__file__, small_base, folder, *kinds]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
            done = subprocess.run([str(word) for word in words], capture_output=True, text=True, env=environment, timeout=400)
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
            started[engine, kinds] = folder
        return started[engine, kinds]

    return start


def engines():
    for engine in ENGINES + ALSO * bool(os.environ.get("SEVERAL")):
        missing = engine.startswith("zero") and find_spec("deepspeed") is None
        yield pytest.param(engine, marks=pytest.mark.skipif(missing, reason="DeepSpeed is not installed"))


each = pytest.mark.parametrize(("engine", "kind"), [(*p.values, kind) for p in engines() for kind in several.KINDS])


def read(folder, name):
    text = (folder / name).read_text()
    return json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]


def told(folder, kind):
    return [read(folder.parent, f"{folder.name}.{kind}.{rank}.json") for rank in (0, 1)]


@each
def test_it_ran_on_two_processes_and_as_it_is_called(on_two, engine, kind):
    first, second = told(on_two(engine), kind)
    assert first["processes"] == second["processes"] == 2
    assert first["type"] == {"ddp": "MULTI_CPU", "fsdp2": "FSDP"}.get(engine, "DEEPSPEED")
    assert ("DTensor" in first["parts"]) == (engine == "fsdp2")


@each
def test_every_step_and_every_evaluation_is_that_of_one_process(alone, on_two, engine, kind):
    one, two = (read(folder / kind, "history.jsonl") for folder in (alone, on_two(engine)))
    compared = 0
    for name in LOSSES:
        ours, theirs = ([(entry["step"], entry[name]) for entry in history if name in entry] for history in (two, one))
        assert [step for step, _ in ours] == [step for step, _ in theirs], name
        assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], rel=1e-5), name
        compared += len(ours)
    assert compared >= 3 * 5 + 4  # five values a step, and an evaluation before, and after each


@each
def test_the_metrics_and_generations_are_those_of_one_process(alone, on_two, engine, kind):
    one, two = (read(folder / kind, "metrics.json") for folder in (alone, on_two(engine)))
    stages = [stage for stage in ("before", "end", "after") if stage in one]
    assert "end" in stages or kind != "full"
    for stage in stages:
        assert two[stage] == pytest.approx(one[stage], rel=1e-5)
    assert two["best"]["step"] == one["best"]["step"] == several.KEPT[kind] and two["supervision"] == one["supervision"]
    replies = [[(s["stage"], s["source"], s["reply"]) for s in read(f / kind, "samples.jsonl")] for f in (alone, on_two(engine))]
    assert replies[0] == replies[1] and len(replies[0]) == len(stages) * 5


@each
def test_there_is_one_folder_as_of_one_process_and_the_first_process_wrote_it(alone, on_two, engine, kind):
    folder = on_two(engine)
    assert sorted(p.name for p in folder.iterdir()) == sorted(several.KINDS)  # no `full.1`
    names = [{str(p.relative_to(f / kind)) for p in (f / kind).rglob("*") if "checkpoints" not in p.parts} for f in (alone, folder)]
    assert names[0] == names[1]
    first, second = (found["written"] for found in told(folder, kind))
    assert any(name.startswith(kind) for name in first)
    assert not [name for name in second if not name.startswith("..") and "checkpoints" not in Path(name).parts]


@each
def test_the_merged_model_is_that_of_one_process_and_is_proven(alone, on_two, engine, kind):
    proof = read(on_two(engine) / kind, "metrics.json")["merge"]
    assert proof["faults"] == [] and proof["kl"] < 1e-6 and proof["generations_equal"]
    parts = [("merged", "model"), *([("adapter", "adapter_model")] if kind != "full" else [])]
    for part, name in parts:
        one, two = (load_file(folder / kind / part / f"{name}.safetensors") for folder in (alone, on_two(engine)))
        assert one.keys() == two.keys()
        for tensor, weights in one.items():
            # DeepSpeed decays tensors that had no gradient, which torch's AdamW leaves alone: those of the vision tower, by 1e-4 a step
            idle = engine.startswith("zero") and ("vision_tower" in tensor or "multi_modal" in tensor)
            assert (two[tensor] - weights).norm() <= (1.1e-4 if idle else 1e-5) * weights.norm(), tensor


@each
def test_what_was_kept_is_the_best_checkpoint_be_it_the_last_or_an_earlier_one(on_two, engine, kind):
    metrics, history = (read(on_two(engine) / kind, name) for name in ("metrics.json", "history.jsonl"))
    losses = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    assert losses[1] != pytest.approx(losses[3], rel=1e-3)
    assert metrics["best"]["checkpoint"] == f"checkpoint-{several.KEPT[kind]}"
    assert metrics["after"]["eval_loss"] == pytest.approx(losses[several.KEPT[kind]], rel=1e-6)


@pytest.mark.parametrize("kind", several.KINDS)
@pytest.mark.parametrize("engine", [engine for engine in engines() if engine.values[0] in ALSO])
def test_a_run_that_was_ended_goes_on_as_the_run_of_one_process_that_was_not(alone, on_two, engine, kind):
    """DeepSpeed's own checkpoint, in parts; `lasting` holds the same of the other engines."""
    folder = on_two(engine, tuple(f"{name}+resumed" for name in several.KINDS))
    one, two = (read(path, "history.jsonl") for path in (alone / kind, folder / f"{kind}+resumed"))
    for name in LOSSES:
        ours, theirs = ([(entry["step"], entry[name]) for entry in history if name in entry] for history in (two, one))
        assert [step for step, _ in ours] == [step for step, _ in theirs], name
        assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], rel=1e-5), name
    one, two = (read(path, "metrics.json") for path in (alone / kind, folder / f"{kind}+resumed"))
    assert two["best"]["step"] == one["best"]["step"] and two["merge"]["faults"] == []
    assert two["after"] == pytest.approx(one["after"], rel=1e-5)
