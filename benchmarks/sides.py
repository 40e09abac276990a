"""The sides of the rows benchmark: trainers of the same model on the same separate rows, each with its own layout of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer
from trl import SFTConfig, SFTTrainer, pack_dataset

from sft_recipes import Recipe, RecipeConfig
from sft_recipes.rows import dataset, pack
from sft_recipes.training.step import StepTrainer

from .workloads import Workload

SIZE: Any = dict(hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2)
ALIKE: Any = dict(use_cpu=True, bf16=False, gradient_checkpointing=False, learning_rate=1e-3, num_train_epochs=1, seed=0)
QUIET: Any = dict(report_to="none", save_strategy="no", eval_strategy="no", logging_strategy="no", disable_tqdm=True)

Rows = Sequence[dict[str, Any]]
Side = Callable[[Rows, int, Any, str], Trainer]  # rows, steps in which to train them, tokenizer, folder


def _model(tokenizer: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZE, vocab_size=len(tokenizer), max_position_embeddings=4096))


def ours(workload: Workload, rows: Rows, steps: int, tokenizer: Any, folder: str) -> Trainer:
    """Packed rows of equal beginnings, one row a micro-batch."""
    found = pack(rows, share=True, count=workload.packed * steps)
    every: Any = dict(output_dir=folder, per_device_train_batch_size=1, gradient_accumulation_steps=-(-len(found.rows) // steps))
    args = RecipeConfig(**every, **ALIKE, **QUIET, dataset_kwargs={"skip_prepare_dataset": True})
    given: Any = dict(model=_model(tokenizer), args=args, train_dataset=dataset(found.rows), processing_class=tokenizer)
    return StepTrainer(Recipe(model="none", data="none"), **given)


def padded(workload: Workload, rows: Rows, steps: int, tokenizer: Any, folder: str) -> Trainer:
    """TRL's rows of similar length, padded to the longest of a micro-batch."""
    accumulation = -(-len(rows) // (workload.batch * steps))
    every: Any = dict(output_dir=folder, per_device_train_batch_size=workload.batch, gradient_accumulation_steps=accumulation)
    grouped = dict(train_sampling_strategy="group_by_length", dataset_kwargs={"skip_prepare_dataset": True})
    return _trl(_columns(rows), tokenizer, SFTConfig(**every, **ALIKE, **QUIET, **grouped))


def packed(workload: Workload, rows: Rows, steps: int, tokenizer: Any, folder: str) -> Trainer:
    """TRL's best-fit rows as long as the longest of the separate ones, one row a micro-batch."""
    longest = max(len(row["input_ids"]) for row in rows)
    found = pack_dataset(_columns(rows), longest, "bfd")
    every: Any = dict(output_dir=folder, per_device_train_batch_size=1, gradient_accumulation_steps=-(-len(found) // steps))
    as_packed: Any = dict(packing=True, max_length=longest, dataset_kwargs={"skip_prepare_dataset": True})
    return _trl(found, tokenizer, SFTConfig(**every, **ALIKE, **QUIET, **as_packed))


def _trl(data: Dataset, tokenizer: Any, args: SFTConfig) -> Trainer:
    return SFTTrainer(_model(tokenizer), args, train_dataset=data, processing_class=tokenizer)


def _columns(rows: Rows) -> Dataset:
    """What TRL reads of our rows."""
    return Dataset.from_dict({name: [row[name] for row in rows] for name in ("input_ids", "labels")})
