"""The engines' small parts: what is launched, what is wrapped, what is refused; whole runs are in `test_several`."""

import os
import re
import subprocess
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate import DistributedType
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import MixedPrecisionPolicy

from sft_recipes import RecipeError, engines
from sft_recipes.engines import Engine, sharding

FILES = sorted((ROOT / "launch").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_reads_each_configuration_as_its_engine(file):
    config = load_config_from_file(str(file))
    kinds = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert config.distributed_type.value == kinds[file.stem] and config.mixed_precision is None  # that is the recipe's
    assert config.deepspeed_config.get("zero_stage") == {"zero2": 2, "zero3": 3}.get(file.stem)
    assert (config.fsdp_config or {}).get("fsdp_version", 2) == 2


def made(*words, **env):
    clean = {name: value for name, value in os.environ.items() if name not in ("GPUS", "ENGINE", "MAKEFLAGS")}
    return subprocess.run(["make", "--no-print-directory", "-n", *words], cwd=ROOT, env={**clean, **env}, capture_output=True, text=True)


@pytest.mark.parametrize("engine", [file.stem for file in FILES])
def test_make_starts_each_engine_by_its_configuration(engine):
    line = made("train", "RECIPE=x", "GPUS=2", f"ENGINE={engine}").stdout.splitlines()[-1]
    assert f"accelerate launch --config_file launch/{engine}.yaml --num_processes 2 " in line and "-m sft_recipes train x" in line
    assert (ROOT / f"launch/{engine}.yaml").is_file()


def test_make_without_processes_is_as_before_and_an_unknown_engine_is_refused():
    assert "accelerate" not in made("train", "RECIPE=x").stdout
    assert "it is one of ddp fsdp2 zero2 zero3" in made("train", "GPUS=2", "ENGINE=fsdp3").stderr
    assert "GPUS=8" in made("train", "ENGINE=fsdp2").stderr


SCRIPT = ROOT / "launch" / "slurm.sh"


def srun(tmp_path, *words, run="", **env):
    """What the script would hand to `srun` on the second of two nodes: each of its words on a line."""
    (tmp_path / "launch").mkdir()
    for file in FILES:
        (tmp_path / "launch" / file.name).write_text(file.read_text())
    tools = {"srun": '[ "$1" = --kill-on-bad-exit=1 ] && shift; exec "$@"'}
    tools["scontrol"] = """[ "$1" = requeue ] && echo "requeued $2" || printf 'node-a\\nnode-b\\n'"""
    tools["scancel"] = 'echo "told $*"; touch told'
    accelerate = tmp_path / ".venv" / "bin" / "accelerate"
    accelerate.parent.mkdir(parents=True)
    accelerate.write_text(f"#!/bin/bash\nprintf '%s\\n' \"$@\"\n{run}\n")
    for name, body in tools.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
    for file in (accelerate, *(tmp_path / name for name in tools)):
        file.chmod(0o755)
    slurm = dict(SLURM_SUBMIT_DIR=str(tmp_path), SLURM_JOB_ID="4711", SLURM_JOB_NUM_NODES="2", SLURM_GPUS_ON_NODE="4")
    slurm |= dict(SLURM_JOB_NODELIST="node-[a-b]", SLURM_NODEID="1", PATH=f"{tmp_path}:{os.environ['PATH']}")
    return subprocess.run(["bash", str(SCRIPT), *words], env={**slurm, **env}, capture_output=True, text=True)


def test_the_slurm_script_starts_every_node_with_its_own_rank(tmp_path):
    done = srun(tmp_path, "gemma-tools", "--data", "my talks.jsonl", ENGINE="zero3")
    words = done.stdout.splitlines()
    told = dict(zip(words[1:13:2], words[2:13:2], strict=True))
    assert told == {
        "--config_file": "launch/zero3.yaml",
        "--num_machines": "2",
        "--num_processes": "8",
        "--machine_rank": "1",
        "--main_process_ip": "node-a",
        "--main_process_port": "24711",
    }
    assert words[13:] == ["-m", "sft_recipes", "train", "gemma-tools", "--data", "my talks.jsonl"]


def test_a_job_that_is_warned_tells_its_run_waits_for_it_and_is_queued_again(tmp_path):
    """SLURM's warning goes to the script, here from the run, which ends once it has been told, with the code of a stopped one."""
    done = srun(tmp_path, "x", run="kill -USR1 $PPID; while [ ! -e told ]; do sleep 0.02; done; echo saved; exit 75")
    assert done.stdout.splitlines()[-3:] == ["told --signal=TERM 4711", "saved", "requeued 4711"] and done.returncode == 75


def test_a_run_that_fails_is_not_queued_again_and_a_wrong_engine_is_refused(tmp_path_factory):
    failed = srun(tmp_path_factory.mktemp("a"), "x", run="exit 1")
    assert failed.returncode == 1 and "requeued" not in failed.stdout
    refused = srun(tmp_path_factory.mktemp("b"), "x", ENGINE="fsdp3")
    assert refused.returncode == 2 and "no launch/fsdp3.yaml" in refused.stderr
    assert srun(tmp_path_factory.mktemp("c")).returncode == 2


def test_the_slurm_script_is_sound_and_asks_to_be_warned_and_queued_again():
    assert subprocess.run(["bash", "-n", SCRIPT]).returncode == 0
    text = SCRIPT.read_text()
    assert {"--requeue", "--signal=B:USR1@120", "--ntasks-per-node=1"} <= set(re.findall(r"^#SBATCH (\S+)", text, re.M))
    assert yaml.safe_load((ROOT / "launch" / f"{re.search('ENGINE:-(.*?)}', text)[1]}.yaml").read_text())["num_machines"] == 1


def test_only_the_layers_that_a_model_has_are_wrapped(small_gemma):
    """The border: accelerate stops at a class that `_no_split_modules` names and the model does not have."""
    assert "Gemma3DecoderLayer" in engines.layers(small_gemma)
    absent = set(small_gemma._no_split_modules) - set(engines.layers(small_gemma))
    assert absent == {"SiglipTextEmbeddings"}
    assert not any(type(module).__name__ in absent for module in small_gemma.modules())
    adapted = get_peft_model(small_gemma, LoraConfig(target_modules=["q_proj"]))
    assert "Gemma3DecoderLayer" in engines.layers(adapted)
    with pytest.raises(RecipeError, match="does not say what its layers are"):
        engines.layers(torch.nn.Linear(2, 2))


def trainer(found, processes, plugin=None):
    state = SimpleNamespace(fsdp_plugin=plugin)
    accelerator = SimpleNamespace(distributed_type=DistributedType(found), num_processes=processes, state=state)
    args = SimpleNamespace(fsdp=None, deepspeed=None)
    return SimpleNamespace(args=args, accelerator=accelerator, model=None)


def test_an_engine_that_was_asked_for_and_is_not_there_stops_the_run(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    engines.ready(trainer("MULTI_CPU", 2))
    with pytest.raises(RecipeError, match="2 processes were started, and each knows of 1"):
        engines.ready(trainer("NO", 1))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(RecipeError, match="fsdp2 was asked for, and accelerate gives MULTI_CPU"):
        engines.ready(trainer("MULTI_CPU", 2))


def test_gradients_are_added_up_in_float32(monkeypatch, small_gemma):
    """The border: accelerate would add them up in bfloat16 where the model computes in it."""
    for name, value in {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}.items():
        monkeypatch.setenv(name, value)
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, torch.bfloat16)
    found = trainer("FSDP", 2, SimpleNamespace(transformer_cls_names_to_wrap=None, mixed_precision_policy=policy))
    found.model = small_gemma
    engines.ready(found)
    plugin = found.accelerator.state.fsdp_plugin
    assert plugin.mixed_precision_policy == MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.bfloat16)
    assert plugin.transformer_cls_names_to_wrap == engines.layers(small_gemma)


@pytest.mark.parametrize("asked", [False, True])
def test_cpus_shard_where_it_is_asked_for_and_only_there(monkeypatch, asked):
    state = SimpleNamespace(distributed_type=DistributedType.MULTI_CPU)
    monkeypatch.setattr(sharding, "PartialState", lambda: state)
    monkeypatch.setattr(sharding, "launched", lambda config: Engine("fsdp2" if asked else "ddp", 2, 2))
    engines.ask_for_parts(None)
    assert state.distributed_type == (DistributedType.MULTI_GPU if asked else DistributedType.MULTI_CPU)


def test_weights_that_will_be_parted_are_loaded_onto_the_cpu_and_quantised_ones_on_the_device(monkeypatch):
    monkeypatch.setattr(sharding, "launched", lambda: Engine("fsdp2", 2, 2))
    assert engines.place(quantised=False) == torch.device("cpu") and engines.place(quantised=True) is None
    monkeypatch.setattr(sharding, "launched", lambda: Engine("ddp", 2, 2))
    assert engines.place(quantised=False) is None


def test_alone_nobody_is_waited_for():
    assert engines.wait(SimpleNamespace(num_processes=1)) is None
