"""The merge proof at the size of a real model: a QLoRA adapter of random weights, merged, saved, and held against itself reloaded."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sft_recipes import Recipe
from sft_recipes.evaluate import generate
from sft_recipes.export import prove, record
from sft_recipes.export.folder import save
from sft_recipes.export.merging import is_tied, merged
from sft_recipes.weights import load_tokenizer, save_adapter

from .models import adapted

PROMPTS, ASKED = 4, 64  # prompts that are continued, and tokens of each


def proven(recipe: Recipe, rows: Sequence[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """The steps of `export.deploy` but for the model card.

    Args:
        recipe: of a base in a folder, quantised.
        rows: separate ones, held out.
        folder: where adapter and merged model are written.

    Returns:
        the proof, as `export.prove` gives it.
    """
    tokenizer, model = load_tokenizer(recipe), adapted(recipe)
    stops = {int(tokenizer.eos_token_id)}
    prompts = [list(row["input_ids"][:ASKED]) for row in rows[:PROMPTS]]
    replies = generate(model, prompts, stops, tokenizer.pad_token_id, recipe.max_new_tokens)
    said = record(model, recipe, tokenizer, stops, rows, list(zip(prompts, replies, strict=True)))
    adapter = save_adapter(model, tokenizer, recipe, folder / "adapter")
    del model
    gc.collect()
    torch.cuda.empty_cache()
    whole = merged(recipe, tokenizer, adapter, "trained").model
    save(whole, tokenizer, recipe, stops, folder / "merged")
    said.tied = is_tied(whole)
    del whole
    gc.collect()
    return prove(folder / "merged", said, folder / "proof")
