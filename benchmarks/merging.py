"""What a merge takes, at the size of Gemma 3 4B with random weights: `python -m benchmarks.merging [FOLDER]`.

Makes the base (8.6 GB) and an adapter of the recipe `gemma-tools` in FOLDER or a temporary one, then merges into either base in
a process of its own. The memory is what the process itself holds at its peak (`RssAnon`): pages of the checkpoint that are only
read from its file are the system's to drop. Needs Linux, 18 GB of disk, 10 GB of memory; eight minutes on two cores.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration

from sft_recipes import TINY, Recipe, load_recipe
from sft_recipes.config import hush
from sft_recipes.export import folder, merging
from sft_recipes.weights import load_tokenizer
from sft_recipes.whole import unfinished

from .meter import status

TEXT = dict(hidden_size=2560, intermediate_size=10240, num_hidden_layers=34, num_attention_heads=8, num_key_value_heads=4, head_dim=256)
VISION = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, image_size=896, patch_size=14)
VOCABULARY = 262_208
RECIPE: Recipe = getattr(load_recipe("gemma-tools"), "recipe")  # noqa: B009  a class that says nothing of it
BASES = ("trained", "original")
CHUNK = 2**20  # weights drawn at once, and used again and again: their values do not matter


def main(where: Path) -> None:
    make(where)
    for base in BASES:
        subprocess.run([sys.executable, "-m", "benchmarks.merging", str(where), base], check=True)


def make(where: Path) -> None:
    """The base and an adapter with weights, as a checkpoint each."""
    config = Gemma3Config(text_config={**TEXT, "vocab_size": VOCABULARY}, vision_config=VISION)
    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    model = model.to_empty(device="cpu")
    model.tie_weights()
    for weight in model.parameters():
        drawn = (torch.randn(CHUNK) * 0.02).bfloat16()
        for part in weight.data.view(-1).split(CHUNK):
            part.copy_(drawn[: len(part)])
    model.save_pretrained(where / "base", max_shard_size=folder.SHARD)
    AutoTokenizer.from_pretrained(TINY / "gemma3").save_pretrained(where / "base")
    adapter = LoraConfig(**{**RECIPE.adapter.to_dict(), "init_lora_weights": False})
    get_peft_model(model, adapter).save_pretrained(where / "adapter")


def measure(where: Path, base: str) -> None:
    """Merge and save, and print what it took."""
    recipe = replace(RECIPE, model=str(where / "base"))
    tokenizer, peak = load_tokenizer(recipe), [0]
    threading.Thread(target=_watch, args=[peak], daemon=True).start()
    started = time.perf_counter()
    model = merging.merged(recipe, tokenizer, where / "adapter", base).model
    with unfinished(where / "merged") as building:
        folder.save(model, tokenizer, recipe, set(), building)
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    took = time.perf_counter() - started
    print(f"merge into {base:<8}  model {size / 1e9:.2f} GB, at most {peak[0] / 1e9:.2f} GB held, {took:.0f} s", flush=True)


def _watch(peak: list[int]) -> None:
    while True:
        peak[0] = max(peak[0], status("RssAnon"))
        time.sleep(0.05)


if __name__ == "__main__":
    hush()
    if len(sys.argv) > 2:
        measure(Path(sys.argv[1]), sys.argv[2])
    elif len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
