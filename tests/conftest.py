"""Shared, hermetic fixtures: no network, two threads, models under a million parameters made on the spot."""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["OMP_NUM_THREADS"] = "1"  # each of the two has one core, and so have the programs that it starts
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="sft-recipes-tests-")  # no test reads what another run has kept

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).parent.parent
REAL_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def threads():
    import torch

    torch.set_num_threads(1 if os.environ.get("PYTEST_XDIST_WORKER") else 2)


@pytest.fixture(scope="session")
def tokenizer():
    """The tiny base's tokenizer with the real Gemma 3 template."""
    return tokenizer_with("gemma3")


def tokenizer_with(template: str):
    """The tiny base's tokenizer with one of TRL's templates; control tokens the template writes are added as special."""
    from transformers import AutoTokenizer

    from sft_recipes import TINY
    from sft_recipes.weights.loading import chat_template

    tokenizer = AutoTokenizer.from_pretrained(TINY / "gemma3")
    tokenizer.chat_template = chat_template(template)
    return tokenizer


@pytest.fixture
def small_gemma():
    """A multimodal Gemma 3 of 0.1 M parameters with random weights, in float32."""
    return make_small_gemma()


@pytest.fixture(scope="session")
def small_base(tmp_path_factory, tokenizer):
    """The same on disk, with its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    make_small_gemma().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_small_gemma():
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    text = dict(
        vocab_size=2048,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        initializer_range=0.2,
    )
    vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=16, patch_size=8)
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1, image_token_index=8)
    ).eval()


@pytest.fixture
def jsonl(tmp_path):
    """Writes rows (or raw lines) into a JSONL file and gives its path."""

    def write(rows, name="data.jsonl"):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture(scope="session")
def chats():
    """Makes `count` small conversations, all different."""

    def make(count, start=0):
        return [
            {"messages": [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": f"{i}"}]}
            for i in range(start, start + count)
        ]

    return make


@pytest.fixture
def own_recipes(tmp_path, monkeypatch):
    """An empty working directory whose `recipes/` folder a test fills; imported recipes are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    known = {name for name in sys.modules if name.partition(".")[0] == "recipes"}
    for name in known:
        monkeypatch.delitem(sys.modules, name)
    yield tmp_path / "recipes"
    for name in [name for name in sys.modules if name.partition(".")[0] == "recipes"]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def gemma_tools():
    """The shipped recipe's trainer class."""
    from sft_recipes import load_recipe

    return load_recipe("gemma-tools")


def command(*words, cwd, **env):
    """Run a command to its end and give it back; its output is shown when it fails."""
    threads = "1" if os.environ.get("PYTEST_XDIST_WORKER") else "2"
    environment = {**os.environ, "OMP_NUM_THREADS": threads, **env}
    environment.pop("WANDB_MODE", None)
    done = subprocess.run([str(w) for w in words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def pytest_collection_modifyitems(items):
    """The main job begins first: it takes longest."""
    items.sort(key=lambda item: "main_job" not in item.fixturenames)


class ByFile(LoadFileScheduling):
    """Two processes share the tests, a file each at a time, as its fixtures are costly; the main job is run once."""

    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        return "the main job" if file.endswith(("e2e/test_main_job.py", "e2e/test_serving.py")) else file


def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


@pytest.fixture(scope="session")
def main_job(tmp_path_factory):
    """The main job as a person types it, whole: its run folder, what it printed, and the seconds it took."""
    folder = tmp_path_factory.mktemp("main")
    started = time.monotonic()
    done = command(sys.executable, "-m", "sft_recipes", "train", "gemma-tools", "--scale", "tiny", cwd=folder)
    return folder / "runs" / "gemma-tools", done.stdout, time.monotonic() - started
