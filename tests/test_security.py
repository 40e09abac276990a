"""Nothing of a checkpoint, a base or a data file is executed, and recipes come from their folder alone (SECURITY.md)."""

import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from steps import trainer_of

from sft_recipes import RecipeError, load_recipe
from sft_recipes.config import resolve
from sft_recipes.scores import python_passes
from sft_recipes.weights import load_adapter, load_model, refuse_pickled, unweighted

ROOT = Path(__file__).parent.parent


class Evil:
    """Unpickled, it leaves a file behind."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return os.mkdir, (self.file,)


def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "ran")))
    assert (tmp_path / "ran").is_dir()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of a small model."""
    folder = tmp_path_factory.mktemp("saved")
    options = dict(max_steps=2, save_steps=1, save_strategy="steps", save_total_limit=5)
    trainer_of("full-llama", folder, **options).train()
    return folder, options


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "pytorch_model.bin"])
def test_a_pickle_in_a_checkpoint_is_not_run(saved, tmp_path, name):
    """The border to transformers, which reads them with `weights_only`, or not at all."""
    folder, options = saved
    checkpoint = tmp_path / "checkpoint-1"
    shutil.copytree(folder / "checkpoint-1", checkpoint)
    torch.save(Evil(tmp_path / "ran"), checkpoint / name)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed") if name.endswith((".pt", ".pth")) else _nothing():
        trainer_of("full-llama", tmp_path / "run", **options).train(resume_from_checkpoint=str(checkpoint))
    assert not (tmp_path / "ran").exists()


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *args):
        return False


def test_weights_in_a_pickle_are_refused(small_base, tmp_path):
    shutil.copytree(small_base, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    torch.save(Evil(tmp_path / "ran"), tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(RecipeError, match=r"its weights are not in safetensors, and a pickle \(pytorch_model\.bin\) can run code"):
        unweighted(str(tmp_path / "base"))
    with pytest.raises(RecipeError, match="cannot be loaded"):
        load_model(str(tmp_path / "base"), "float32")
    assert not (tmp_path / "ran").exists()


def test_an_adapter_in_a_pickle_is_refused(tmp_path, small_gemma):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    torch.save(Evil(tmp_path / "ran"), tmp_path / "adapter_model.bin")
    for work in (refuse_pickled, lambda folder: load_adapter(small_gemma, folder)):
        with pytest.raises(RecipeError, match=r"no adapter_model\.safetensors; weights are read from safetensors only"):
            work(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_nothing_of_ours_unpickles_or_trusts():
    """No file of the package says otherwise: `torch.load`, `pickle`, an array's objects, code of a model's repository. Pickled is what
    lies in files without a name, and what goes to this process's own workers."""
    own = {"shelf.py", "parallel.py"}
    for file in (*ROOT.glob("sft_recipes/**/*.py"), *ROOT.glob("recipes/*.py")):
        text = file.read_text()
        for word in ("torch.load(", "import pickle", "allow_pickle=True", "trust_remote_code=True", '"trust_remote_code": True', "eval("):
            if word == "import pickle" and file.name in own:
                continue
            assert word not in text.replace(".eval(", "").replace("literal_eval(", ""), f"{file.name}: {word}"


def test_asking_for_a_models_code_by_name_is_answered_with_the_reason():
    with pytest.raises(RecipeError, match="trust_remote_code is True: code of a model's repository is never run here"):
        resolve("gemma-tools", "tiny", trust_remote_code="true")


@pytest.mark.parametrize(
    "name",
    ["../evil", "/tmp/evil", "evil.py", "recipes.evil", "sub/evil", "sub.evil", "..evil", "", ".", "os", "_evil", "__init__", "ev\0il"],
)
def test_a_recipe_comes_from_the_folder_alone(own_recipes, name):
    """A name is looked up among the files of the folders; nothing else is imported, whatever the name looks like."""
    code = f"import os\nos.mkdir({str(own_recipes.parent / 'ran')!r})\n"
    (own_recipes / "sub").mkdir()
    for place in (own_recipes.parent / "evil.py", own_recipes / "sub" / "evil.py", own_recipes / "_evil.py", own_recipes / "__init__.py"):
        place.write_text(code)
    before = set(sys.modules)
    with pytest.raises(RecipeError, match="unknown recipe"):
        load_recipe(name)
    assert not (own_recipes.parent / "ran").exists() and set(sys.modules) - before <= {"recipes"}


@pytest.mark.skipif(os.name != "posix", reason="limits are POSIX")
@pytest.mark.parametrize(
    "code",
    [
        "import os; assert any('Planted' in value for value in os.environ.values())",
        "assert 'Planted' in open('/proc/self/environ').read()",
        "import os; assert 'Planted' in open(f'/proc/{os.getppid()}/environ').read()",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
        "import _posixsubprocess; _posixsubprocess.fork_exec()",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import os; os.forkpty()",
        "import os; os.setpgid(0, 0); os.killpg(os.getppid(), 9)",
        "import signal, os; signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0)",
        "import ctypes; ctypes.pythonapi.Py_IncRef(None)",
        "import os; open(f'/proc/{os.getppid()}/status').read()",
    ],
)
def test_generated_code_gets_nothing_of_this_process(monkeypatch, code):
    """No token of its environment or its parent's, no network, no process, no signal: what it tries ends it, or fails."""
    monkeypatch.setenv("HF_TOKEN", "hf_" + "Planted" * 5)
    assert python_passes({"content": code, "stopped": True}, {"tests": "assert True"}, seconds=5) == 0.0
