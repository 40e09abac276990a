"""The deployed folder held against the record of what was trained, in a process that knows nothing else (promise 7).

python -m sft_recipes.export.proof MERGED RECORD
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig

from ..evaluate import generate
from ..weights import load_model
from . import checks
from .folder import declared_stops
from .merging import is_tied
from .record import Record, spoken

OF_A_GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def prove(merged: Path, record: Record, folder: Path) -> dict[str, Any]:
    """Hold the deployed folder against the record, in a fresh process.

    Args:
        merged: the folder.
        folder: where the record is written for that process, and removed again.

    Returns:
        `faults`, each a sentence, empty for the trained model; `kl` and `max_kl` (nats per supervised token) over `tokens`;
        `loss` and `trained_loss` (nats); `generations`, `generations_equal`, `stops` and `trained_stops` (shares that halt),
        and `first_difference` where there is one; `prompts`, how many training prompts were rendered again; `template`, SHA-256
        of the chat template. Where the weights cannot be loaded, or the process failed, there are `faults` alone.
    """
    command = [sys.executable, "-m", "sft_recipes.export.proof", str(merged), str(folder)]
    ours = {key: value for key, value in os.environ.items() if key not in OF_A_GROUP}  # not a member of this process's group
    torch.cuda.empty_cache()  # it needs room beside this process
    try:
        record.write(folder)
        progress = None if sys.stderr.isatty() else subprocess.PIPE  # its bars in a terminal, its last words elsewhere
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=progress, text=True, env=ours)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if done.returncode:
        return {"faults": [f"the proof did not run: {((done.stderr or '').strip().splitlines() or ['see above'])[-1]}"]}
    return json.loads(done.stdout.splitlines()[-1])


def compare(merged: Path, record: Record) -> dict[str, Any]:
    """The proof itself: see `prove`."""
    tokenizer = AutoTokenizer.from_pretrained(merged)
    config = GenerationConfig.from_pretrained(merged)
    found = checks.stops(config, tokenizer.pad_token_id, tokenizer, record) + checks.template(tokenizer, record)
    if broken := checks.checkpoint(merged, record):
        return {"faults": [*broken, *found]}
    model = load_model(str(merged), "auto")
    if record.tied != is_tied(model):
        tied, trained = ("are the same weights" if some else "are two sets of weights" for some in (is_tied(model), record.tied))
        found.append(f"config.json: tie_word_embeddings: embedding and head {tied}; in the trained model they {trained}")
    said = {**_weighed(model, record), **_spoken(model, tokenizer, record)}
    return {"faults": found, **said, "prompts": len(record.served), "template": record.template}


def _weighed(model: Any, record: Record) -> dict[str, Any]:
    """How far the deployed model's predictions are from the trained one's, and what they cost."""
    kls, losses, left = [], [], record.logits
    for logits, loss in spoken(record.rows, record.positions, model):
        losses.append(loss)
        if len(left):
            kls.append(divergence(left[: len(logits)], logits[: len(left)]))
            left = left[len(logits) :]
    kl = torch.cat(kls)
    found = {"kl": kl.mean().item(), "max_kl": kl.max().item(), "tokens": len(kl)}
    return {**found, "loss": torch.cat(losses).mean().item(), "trained_loss": record.loss}


def divergence(trained: torch.Tensor, deployed: torch.Tensor) -> torch.Tensor:
    """KL(trained || deployed) of each token, in nats, `(tokens,)` in float64, from two `(tokens, vocabulary)` logits."""
    p, q = trained.double().log_softmax(-1), deployed.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)


def _spoken(model: Any, tokenizer: Any, record: Record) -> dict[str, Any]:
    """What the deployed model says to the recorded prompts, halting where its own folder tells it to."""
    stops = set(declared_stops(model.generation_config))
    replies = generate(model, record.prompts, stops, tokenizer.pad_token_id, record.max_new_tokens, desc="proving")
    pairs = list(zip(record.prompts, record.replies, replies, strict=True))
    different = next(((p, a, b) for p, a, b in pairs if a != b), None)
    proof: dict[str, Any] = {
        "generations": len(replies),
        "generations_equal": different is None,
        "stops": _halting(replies, stops),
        "trained_stops": _halting(record.replies, set(record.stop_ids)),
    }
    if different:
        proof["first_difference"] = dict(zip(("prompt", "trained", "deployed"), map(tokenizer.decode, different), strict=True))
    return proof


def _halting(replies: list[list[int]], stops: set[int]) -> float:
    return sum(bool(reply) and reply[-1] in stops for reply in replies) / len(replies)


if __name__ == "__main__":
    print(json.dumps(compare(Path(sys.argv[1]), Record.read(Path(sys.argv[2])))))
