"""`encoding`: conversations to labelled rows, ours beside TRL's own preparation with `assistant_only_loss=True`.

The same 2,000 tiny-scale conversations (rendered for Gemma 3), the same tokenizer, in one process, order alternated, the
median of three. TRL knows Gemma 3's template byte for byte, so it can mask it at all.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from datasets import Dataset
from transformers import Gemma3ForConditionalGeneration
from trl import SFTConfig, SFTTrainer

from sft_recipes import TINY, load_recipe
from sft_recipes.config import hush
from sft_recipes.data import load
from sft_recipes.recipe import sources
from sft_recipes.rows import build_rows
from sft_recipes.turns import Supervisor
from sft_recipes.weights import load_tokenizer

ROUNDS = 3


def line() -> str:
    """The workload's line: name, seconds of both, supervised tokens of both, ratio."""
    hush()
    hooks: Any = load_recipe("gemma-tools")
    recipe = hooks.recipe.at("tiny")
    tokenizer = load_tokenizer(recipe)
    conversations = [hooks.render(c) for c in load(sources(recipe.data), hooks.conversation)]
    model = Gemma3ForConditionalGeneration.from_pretrained(TINY / "gemma3")

    def ours() -> int:
        supervisor = Supervisor(tokenizer)
        supervised = ((str(i), supervisor.turns(c["messages"])) for i, c in enumerate(conversations))
        rows, account = build_rows(supervised, None)
        Dataset.from_list(rows)
        return account.supervised_tokens

    def trl() -> int:
        rows = Dataset.from_list([{"messages": c["messages"]} for c in conversations])
        with tempfile.TemporaryDirectory() as folder:
            config = SFTConfig(
                folder, assistant_only_loss=True, max_length=None, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True
            )
            trained: Any = SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer).train_dataset
        return sum(label != -100 for labels in trained["labels"] for label in labels)

    seconds: dict[Callable[[], int], list[float]] = {ours: [], trl: []}
    tokens = {work: work() for work in seconds}  # a warm-up, and what each would train
    for round_ in range(ROUNDS):
        for work in (ours, trl) if round_ % 2 else (trl, ours):
            started = time.perf_counter()
            work()
            seconds[work].append(time.perf_counter() - started)
    a, b = statistics.median(seconds[ours]), statistics.median(seconds[trl])
    return f"encoding  ours {a:.1f} s ({tokens[ours]:,} supervised tokens)  TRL {b:.1f} s ({tokens[trl]:,})  {b / a:.2f}x"
