"""Predicted and measured memory of training steps on the CPU, side by side: `python -m benchmarks.memory`.

Each case trains a Llama of random weights in float32 with AdamW in a process of its own, for a few steps over rows of random tokens of
which a fifth carry loss. Measured is the most that the process holds (`VmHWM`, which the kernel keeps and begins anew when asked to), over
what it held before the weights were made; a smaller model is trained first, so that imports and pools are paid. Blocks above 64 kB are
given back when freed (`MALLOC_MMAP_THRESHOLD_`). Predicted is `plan`'s arithmetic on the configuration alone. Needs Linux.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Trainer

from sft_recipes import TINY, Recipe, RecipeConfig
from sft_recipes.config import hush
from sft_recipes.plan.memory import Memory, Setting, needed
from sft_recipes.plan.shapes import model_of
from sft_recipes.rows import dataset, pack
from sft_recipes.training.step import StepTrainer
from sft_recipes.weights import settle

from .meter import _reset, status

BOUND = 0.15  # relative difference
STEPS = 2
HELD = "bytes held:"
SHARE = 5  # one of so many tokens carries loss
QUIET: Any = dict(report_to="none", save_strategy="no", eval_strategy="no", logging_strategy="no", disable_tqdm=True)


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        name: of its line.
        width, layers, vocabulary: of the Llama; its feed-forward layers are three times as wide.
        length: tokens of a packed row, or of each separate one.
        batch: separate rows in a micro-batch; 0 for packed ones.
        lora: an adapter on every linear layer instead of all weights.
        checkpointing: gradient checkpointing.
        accumulation: micro-batches a step.
    """

    name: str
    width: int = 512
    layers: int = 8
    vocabulary: int = 8192
    length: int = 1024
    batch: int = 0
    lora: bool = False
    checkpointing: bool = False
    accumulation: int = 1


CASES = (
    Case("full"),
    Case("full, checkpointing", checkpointing=True),
    Case("full, two micro-batches", accumulation=2),
    Case("full, short rows", length=256),
    Case("full, a large head", width=256, layers=4, vocabulary=65536, length=1024),
    Case("full, separate rows", batch=4, length=384),
    Case("LoRA", lora=True),
    Case("LoRA, checkpointing", lora=True, checkpointing=True),
    Case("LoRA, long row, checkpointing", lora=True, checkpointing=True, length=3072, layers=4),
)


def config_of(case: Case) -> LlamaConfig:
    heads = case.width // 64
    sizes = dict(hidden_size=case.width, intermediate_size=3 * case.width, num_hidden_layers=case.layers)
    return LlamaConfig(
        vocab_size=case.vocabulary, num_attention_heads=heads, num_key_value_heads=heads // 2, tie_word_embeddings=False, **sizes
    )


def adapter_of(case: Case) -> LoraConfig | None:
    return LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM") if case.lora else None


def predicted(case: Case) -> Memory:
    """`plan`'s figure, from the configuration alone."""
    with torch.device("meta"):
        model = LlamaForCausalLM._from_config(config_of(case))
    recipe = Recipe(model="none", data="none", dtype="float32", adapter=adapter_of(case))
    rows, tokens = case.batch or 1, case.length * (case.batch or 1)
    numbers = model_of(model, recipe, case.length, ("stored",), packed=not case.batch)
    size: Any = dict(rows=rows, length=case.length, supervised=tokens // SHARE + 32)
    return needed(numbers, Setting("ddp", 1, **size, accumulation=case.accumulation, checkpointing=case.checkpointing))


def measured(case: Case) -> float:
    """Bytes at the peak of a few steps, in this process."""
    before = _reset()
    assert before is not None, "needs Linux"
    _train(case)
    return float(status("VmHWM") - before)


def _train(case: Case) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TINY / "gemma3")
    rows = list(map(lambda i: _row(case, i), range(STEPS * case.accumulation * (case.batch or 1))))
    found = rows if case.batch else pack(rows, share=False, row_tokens=case.length).rows
    with tempfile.TemporaryDirectory() as folder:
        machine: Any = dict(use_cpu=True, bf16=False, gradient_checkpointing=case.checkpointing, dataloader_pin_memory=False)
        steps: Any = dict(gradient_accumulation_steps=case.accumulation, per_device_train_batch_size=case.batch or 1, num_train_epochs=1)
        args = RecipeConfig(
            output_dir=folder, dataset_kwargs={"skip_prepare_dataset": True}, learning_rate=1e-4, **machine, **steps, **QUIET
        )
        given: Any = dict(model=LlamaForCausalLM(config_of(case)), args=args, train_dataset=dataset(found), processing_class=tokenizer)
        trainer: Trainer = StepTrainer(Recipe(model="none", data="none"), peft_config=adapter_of(case), **given)
        settle(trainer.model)
        trainer.train()
    del trainer, given
    gc.collect()


def _row(case: Case, number: int) -> dict[str, Any]:
    length = case.length - 16 * (number % case.batch) if case.batch else case.length  # so that there is padding, and a mask
    ids = torch.randint(10, min(case.vocabulary, 2048), (length,)).tolist()
    labels = [token if i % SHARE == 0 else -100 for i, token in enumerate(ids)]
    return {"input_ids": ids, "labels": labels, "source": f"random:{number + 1}"}


def compare_all(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Both figures of each case in GB, measured in one process apart, and how far the prediction is off."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "benchmarks.memory", *(json.dumps(asdict(case)) for case in cases)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    sizes = [float(line.removeprefix(HELD)) for line in done.stdout.splitlines() if line.startswith(HELD)]
    return [_result(case, predicted(case), size) for case, size in zip(cases, sizes, strict=True)]


def _result(case: Case, expected: Memory, found: float) -> dict[str, Any]:
    figures = {"predicted": expected.total / 1e9, "measured": found / 1e9, "off": expected.total / found - 1}
    return {"name": case.name, **figures, "when": expected.moment}


def line(result: dict[str, Any]) -> str:
    """The name first, the difference last."""
    return "{name:<30}  predicted {predicted:.3f} GB {when:<24}  measured {measured:.3f} GB  {off:+.1%}".format(**result)


if __name__ == "__main__":
    hush()
    if len(sys.argv) > 1:
        asked = [Case(**json.loads(word)) for word in sys.argv[1:]]
        for again in dict.fromkeys((case.batch, case.lora, case.checkpointing) for case in asked):
            _train(Case("warm-up", 128, 2, 2048, 128, *again))
        for case in asked:
            print(f"{HELD} {measured(case)}", flush=True)
    else:
        worst = 0.0
        for each in CASES:
            result = compare_all([each])[0]
            worst = max(worst, abs(result["off"]))
            print(line(result), flush=True)
        print(f"worst {worst:.1%}, bound {BOUND:.0%}")
        sys.exit(worst > BOUND)
