"""Models of real shapes with random weights, made on the device and written as a checkpoint, so that they are loaded as any other is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from recipes.gemma_tools import nf4
from sft_recipes import TINY, Recipe
from sft_recipes.weights import load_model, load_tokenizer

from .device import here

GEMMA, LLAMA = "Gemma 3 4B", "Llama 3.2 3B"
# google/gemma-3-4b-it's language model, and meta-llama/Llama-3.2-3B
REAL: dict[str, dict[str, Any]] = {
    GEMMA: dict(
        vocab_size=262_208, hidden_size=2560, intermediate_size=10_240, num_hidden_layers=34, num_attention_heads=8,
        num_key_value_heads=4, head_dim=256, query_pre_attn_scalar=256, sliding_window=1024, max_position_embeddings=131_072,
    ),
    LLAMA: dict(
        vocab_size=128_256, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=131_072, tie_word_embeddings=True,
    ),
}  # fmt: skip
SMALL: dict[str, Any] = dict(vocab_size=2304, hidden_size=64, intermediate_size=96, num_hidden_layers=2, head_dim=16)
LESS: dict[str, dict[str, Any]] = {
    GEMMA: dict(num_attention_heads=4, num_key_value_heads=2, sliding_window=64, layer_types=["sliding_attention", "full_attention"]),
    LLAMA: dict(hidden_size=96, num_attention_heads=6, num_key_value_heads=2),
}
CLASSES: dict[str, tuple[Any, Any]] = {GEMMA: (Gemma3ForCausalLM, Gemma3TextConfig), LLAMA: (LlamaForCausalLM, LlamaConfig)}


def recipe_of(folder: Path, scale: str, quantised: bool) -> Recipe:
    """LoRA of rank 16 on every linear layer; on NF4 with double quantisation where asked."""
    dtype = "bfloat16" if scale == "full" else "float32"
    base = Recipe(model=str(folder), data="none", dtype=dtype, adapter=lora(), max_new_tokens=16)
    return replace(base, quantization=nf4(dtype)) if quantised else base


def lora(drawn: bool = False) -> LoraConfig:
    """The adapter; `drawn`: with random weights on both sides, so that it changes what the model says."""
    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=not drawn, task_type="CAUSAL_LM")


def write(name: str, scale: str, folder: Path) -> Path:
    """A checkpoint with its tokenizer."""
    architecture, configuration = CLASSES[name]
    sizes = REAL[name] if scale == "full" else REAL[name] | SMALL | LESS[name]
    torch.manual_seed(0)
    with torch.device(here()):
        model = architecture._from_config(configuration(**sizes), dtype=torch.bfloat16 if scale == "full" else torch.float32)
    target = folder / name.replace(" ", "-").lower()
    model.save_pretrained(target)
    load_tokenizer(Recipe(model=str(TINY / "gemma3"), data="none", chat_template="gemma3")).save_pretrained(target)
    return target


def adapted(recipe: Recipe, dtype: str = "") -> Any:
    """The base with an adapter of random weights, as `PeftModel`.

    Args:
        recipe: from `recipe_of`.
        dtype: of the weights, where it is not the recipe's.
    """
    model: Any = load_model(recipe.model, dtype or recipe.dtype, recipe.quantization)
    torch.manual_seed(1)
    return get_peft_model(model, lora(drawn=True))


def on_device(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value.to(here()) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def tokens(rows: Sequence[dict[str, Any]]) -> int:
    return sum(len(row["input_ids"]) for row in rows)
