"""What the embedded bases have in common: a byte-level BPE, blocks of documents end to end, the training loop, the record of it."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm

# A word with the space before it, a digit, or a run of anything else, so that JSON's `": "` can be one token.
# A line break stands alone: merged with what follows, a turn's first token would differ from the one a served model says.
PIECES = r"\n| ?[A-Za-z]+|[0-9]|[^A-Za-z0-9\n]+(?= [A-Za-z])|[^A-Za-z0-9\n]+"


def train_bpe(documents: Iterable[str], special: list[str], vocabulary: int, bos: str, pieces: str = PIECES) -> Tokenizer:
    """A byte-level BPE of `vocabulary` tokens, the special ones first; `bos` goes in front of every text.

    Args:
        documents: endless; the first 30,000 are learned from.
        special: control tokens, in the order of their ids.
        vocabulary: how many tokens there are.
        bos: one of the special ones.
        pieces: what no token reaches beyond; by default digits stand alone.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(itertools.islice(documents, 30_000), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, special.index(bos))]
    )
    return tokenizer


def blocks(tokenizer: Any, documents: Iterator[str], batch_size: int, block: int) -> Iterator[torch.Tensor]:
    """An endless stream of `(batch_size, block)` token ids: documents end to end, each from its BOS to an EOS."""
    buffer: list[int] = []
    while True:
        while len(buffer) < batch_size * block:
            for ids in tokenizer(list(itertools.islice(documents, 256)))["input_ids"]:
                buffer += [*ids, tokenizer.eos_token_id]
        yield torch.tensor(buffer[: batch_size * block]).view(batch_size, block)
        buffer = buffer[batch_size * block :]


def pretrain(model: Any, batches: Iterable[torch.Tensor], steps: int, peak: float = 3e-3) -> list[float]:
    """AdamW, 2% warm-up, cosine to a tenth; gives the loss (nats per token) of every step."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.95), fused=True
    )
    warmup, losses = max(1, steps // 50), []
    for step, batch in zip(bar := tqdm(range(steps), desc="pre-training"), batches, strict=False):
        progress = max(0.0, (step - warmup) / (steps - warmup))
        rate = peak * min((step + 1) / warmup, 0.1 + 0.45 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 50 == 0:
            bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.3f}")
    return losses


def options(what: str, folder: Path, steps: int, batch_size: int, block: int) -> argparse.Namespace:
    """The command line of a base's script, with its own defaults."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch_size", type=int, default=batch_size, help=f"blocks of {block} tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=folder)
    return parser.parse_args()


def make(
    chosen: argparse.Namespace,
    tokenizer: Any,
    model: Any,
    documents: Callable[[int], Iterator[str]],
    block: int,
    saved: Any,
) -> None:
    """Pre-train a base and write it: bfloat16 weights, what goes with them, and `base.json` with what was done and measured.

    Args:
        chosen: from `options`.
        tokenizer: of the base.
        model: with random weights; trained in place.
        documents: the corpus, by its seed.
        block: tokens in a training block.
        saved: what is written beside the weights: the tokenizer, or a processor that holds it.
    """
    started = time.monotonic()
    losses = pretrain(model, blocks(tokenizer, documents(chosen.seed + 1), chosen.batch_size, block), chosen.steps)
    model.to(torch.bfloat16).save_pretrained(chosen.output_dir)
    saved.save_pretrained(chosen.output_dir)
    record = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": chosen.steps,
        "tokens": chosen.steps * chosen.batch_size * block,
        "seed": chosen.seed,
        "loss_first_50": sum(losses[:50]) / 50,
        "loss_last_50": sum(losses[-50:]) / 50,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "cores": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    (chosen.output_dir / "base.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))
