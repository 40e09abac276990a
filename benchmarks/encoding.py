"""`encoding`: conversations to labelled rows, ours beside TRL's own preparation with `assistant_only_loss=True`.

4,000 conversations of about 490 tokens and 3.7 turns, each made of two of the tiny scale's, calls and results as text, for Gemma
3's own template: TRL knows it byte for byte, so that it can mask it at all. The same tokenizer, in one process, order alternated,
the median of three; nothing is read from a cache.
"""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from datasets import Dataset
from transformers import Gemma3ForConditionalGeneration
from trl import SFTConfig, SFTTrainer

from sft_recipes import TINY, load_recipe
from sft_recipes.data.reading import load
from sft_recipes.recipe import sources
from sft_recipes.rows import build_rows, dataset
from sft_recipes.turns import Supervisor
from sft_recipes.turns.dataset import supervise_all
from sft_recipes.turns.turn import collector_paused
from sft_recipes.weights import load_tokenizer
from sft_recipes.weights.templates import chat_template

ROUNDS, CONVERSATIONS = 3, 4000
TURN = re.compile(r"<start_of_turn>(user|model)\n(.*?)<end_of_turn>\n", re.DOTALL)


def as_text(tokenizer: Any, conversation: Any) -> list[dict[str, str]]:
    """The same turns with tools, calls and results written into them."""
    rendered = tokenizer.apply_chat_template(conversation["messages"], tools=conversation["tools"] or None, tokenize=False)
    return [{"role": {"model": "assistant"}.get(role, role), "content": text} for role, text in TURN.findall(rendered)]


def line() -> str:
    """The workload's line: name, seconds of both, supervised tokens of both, ratio."""
    hooks: Any = load_recipe("gemma-tools")
    recipe = hooks.recipe.at("tiny")
    tokenizer = load_tokenizer(recipe)
    short = [as_text(tokenizer, c) for c in load(sources(recipe.data), hooks.conversation)]
    tokenizer.chat_template = chat_template("gemma3")
    conversations = [short[i % len(short)] + short[(i * 7 + 131) % len(short)] for i in range(CONVERSATIONS)]
    model = Gemma3ForConditionalGeneration.from_pretrained(TINY / "gemma3")

    @collector_paused()  # as in `prepare`
    def ours() -> int:
        found = supervise_all(Supervisor(tokenizer), [(messages, None) for messages in conversations])
        rows, account = build_rows([(str(i), turns) for i, turns in enumerate(found) if isinstance(turns, list)], None)
        dataset(rows)
        return account.supervised_tokens

    def trl() -> Any:
        rows = Dataset.from_list([{"messages": messages} for messages in conversations])
        with tempfile.TemporaryDirectory() as folder:
            config = SFTConfig(
                folder, assistant_only_loss=True, max_length=None, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True
            )
            trained: Any = SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer).train_dataset
        return trained

    seconds: dict[Callable[[], Any], list[float]] = {ours: [], trl: []}
    tokens = ours(), sum(label != -100 for labels in trl()["labels"] for label in labels)  # a warm-up, and what each would train
    for round_ in range(ROUNDS):
        for work in (ours, trl) if round_ % 2 else (trl, ours):
            started = time.perf_counter()
            work()
            seconds[work].append(time.perf_counter() - started)
    a, b = statistics.median(seconds[ours]), statistics.median(seconds[trl])
    return f"encoding  ours {a:.1f} s ({tokens[0]:,} supervised tokens)  TRL {b:.1f} s ({tokens[1]:,})  {b / a:.2f}x"
