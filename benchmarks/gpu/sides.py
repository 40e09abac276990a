"""A case of training, and its two sides on the same conversations: `StepTrainer` over tree rows, and stock TRL in each of its layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, Trainer
from trl import SFTConfig, SFTTrainer, pack_dataset

from benchmarks.workloads import WORKLOADS, rows_of
from sft_recipes import Recipe, RecipeConfig
from sft_recipes.rows import Packed, dataset, pack
from sft_recipes.training.step import StepTrainer
from sft_recipes.weights import settle

from .device import allocated, cuda

STEP_TOKENS = 8192  # of a step of ours, in rows of so many, or half as many
GROUPS = {"agent": 24, "reasoning": 8, "chat": 40}  # that are made, of which a step takes as many as fit
QUIET: Any = dict(report_to="none", save_strategy="no", eval_strategy="no", logging_steps=1, disable_tqdm=True, seed=0)
LAYOUTS = ("padded", "packed, sdpa", "packed, flex_attention")

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """What is trained: a workload on a model, in rows of at most so many tokens."""

    workload: str
    model: str
    quantised: bool
    tokens: int

    @property
    def name(self) -> str:
        return f"{self.workload}, {self.model}, {'QLoRA NF4' if self.quantised else 'LoRA bf16'}, {self.tokens:,} a row"


@dataclass(frozen=True)
class Work:
    """The conversations of one step, as separate rows and as tree rows, and their tokenizer."""

    rows: Rows
    packed: Packed
    tokenizer: Any

    @property
    def supervised(self) -> int:
        """Tokens that carry loss."""
        return sum(len(row["labels"]) - row["labels"].count(-100) for row in self.rows)


@cache
def work(workload: str, tokens: int) -> Work:
    """As many whole conversations as fit into the tree rows of a step."""
    every, tokenizer = rows_of(workload, GROUPS[workload])
    every = [row for row in every if len(row["input_ids"]) <= tokens]
    sources = list(dict.fromkeys(row["source"] for row in every))
    count, low, high = STEP_TOKENS // tokens if tokens in (STEP_TOKENS, STEP_TOKENS // 2) else 1, 1, len(sources)
    while low < high:
        middle = (low + high + 1) // 2
        fits = len(_together(every, sources[:middle], tokens).rows) <= count
        low, high = (middle, high) if fits else (low, middle - 1)
    chosen = set(sources[:low])
    return Work([row for row in every if row["source"] in chosen], _together(every, sources[:low], tokens), tokenizer)


def _together(rows: Rows, sources: Sequence[str], tokens: int) -> Packed:
    chosen = set(sources)
    return pack([row for row in rows if row["source"] in chosen], share=True, row_tokens=tokens)


@dataclass
class Side:
    """A model that one side trains.

    Attributes:
        model: the base, at first; once it has been trained, with its adapter on it.
        adapter: what is put on it, once.
        held: bytes of both on the device.
    """

    model: Any
    adapter: Any
    held: int = 0

    def made(self, kind: Any, given: dict[str, Any], *first: Any) -> Trainer:
        """A trainer of it."""
        before = allocated()
        if not given["args"].gradient_checkpointing:
            self.model.gradient_checkpointing_disable()
        trainer: Trainer = kind(*first, model=self.model, peft_config=self.adapter, **given)
        trainer.remove_callback(PrinterCallback)
        if kind is StepTrainer:
            settle(trainer.model)
        self.held += allocated() - before if self.adapter else 0
        self.model, self.adapter = trainer.model, None
        return trainer


def settings(steps: int, accumulation: int, checkpointing: bool, folder: str, **more: Any) -> dict[str, Any]:
    """What both sides have: an epoch is a step, and nothing is learned that would change what later steps cost."""
    machine = dict(use_cpu=not cuda(), bf16=cuda(), dataloader_pin_memory=cuda(), gradient_checkpointing=checkpointing)
    steady = dict(learning_rate=1e-5, num_train_epochs=steps, gradient_accumulation_steps=accumulation)
    skip = dict(dataset_kwargs={"skip_prepare_dataset": True}, output_dir=folder)
    return {**machine, **steady, **skip, **QUIET, **more}


def ours(side: Side, of: Work, steps: int, checkpointing: bool, folder: str) -> Trainer:
    """Tree rows, one a micro-batch."""
    args = RecipeConfig(**settings(steps, len(of.packed.rows), checkpointing, folder, per_device_train_batch_size=1))
    given = dict(args=args, train_dataset=dataset(of.packed.rows), processing_class=of.tokenizer)
    return side.made(StepTrainer, given, Recipe(model="none", data="none"))


def trl(side: Side, layout: str, of: Work, tokens: int, steps: int, checkpointing: bool, folder: str) -> Trainer:
    """One of TRL's layouts: rows of similar length, as many of the longest as a row of ours holds; or best-fit rows as long as ours."""
    columns = Dataset.from_dict({name: [row[name] for row in of.rows] for name in ("input_ids", "labels")})
    kind, _, attention = layout.partition(", ")
    base = side.model.get_base_model() if hasattr(side.model, "get_base_model") else side.model
    base.set_attn_implementation(attention or "sdpa")
    if kind == "padded":
        size = max(1, tokens // max(len(row["input_ids"]) for row in of.rows))
        more: dict[str, Any] = dict(per_device_train_batch_size=size, train_sampling_strategy="group_by_length", max_length=None)
        accumulation = -(-len(columns) // size)
    else:
        columns = pack_dataset(columns, tokens, "bfd")
        more, accumulation = dict(per_device_train_batch_size=1, packing=True, max_length=tokens), len(columns)
    args = SFTConfig(**settings(steps, accumulation, checkpointing, folder, **more))
    return side.made(SFTTrainer, dict(args=args, train_dataset=columns, processing_class=of.tokenizer))


def bar(workload: str) -> float:
    return WORKLOADS[workload].bar
