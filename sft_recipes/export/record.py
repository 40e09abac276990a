"""What the trained model says, taken down before it is merged: all that the deployed folder is held against."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..recipe import Recipe
from ..rows import IGNORED
from ..weights.identity import layout
from ..weights.templates import fingerprint
from .merging import is_tied, shape, tables

LOGITS_BUDGET = 2**26  # float32 logits kept for the proof: 256 MB, 256 tokens of Gemma 3's vocabulary
PROMPTS = 64  # generations compared, and prompts rendered again


@dataclass
class Record:
    """Plain data, written to a folder for another process to read.

    Attributes:
        rows: `input_ids` of held-out rows.
        positions: for each row, the positions whose next token is supervised.
        loss: mean negative log-likelihood of those tokens, in nats.
        logits: `(n, vocabulary)` in float32, at the first n of those positions.
        prompts, replies: served contexts, and their greedy continuations.
        max_new_tokens: limit of those continuations.
        stop_ids: every stop token found in training.
        template: SHA-256 of the chat template that was trained with.
        template_kwargs: what it was rendered with.
        response_template: how a server reads a reply back, as the tokenizer that was trained with had it.
        served: training contexts as `messages`, `tools` and the `ids` that were trained on.
        checkpoint: names and shapes of the base's tensors; `None` where they cannot be compared.
        not_loaded: regular expressions for names of a checkpoint that the model's class makes no weights of.
        tied: whether embedding and head are the same weights; set again where the merge had to part them.
    """

    rows: list[list[int]]
    positions: list[list[int]]
    loss: float
    logits: torch.Tensor
    prompts: list[list[int]]
    replies: list[list[int]]
    max_new_tokens: int
    stop_ids: list[int]
    template: str
    template_kwargs: dict[str, Any]
    response_template: dict[str, Any] | None
    served: list[dict[str, Any]]
    checkpoint: dict[str, list[int]] | None
    not_loaded: list[str]
    tied: bool

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"logits": self.logits}, folder / "logits.safetensors")
        plain = {key: value for key, value in vars(self).items() if key != "logits"}
        (folder / "record.json").write_text(json.dumps(plain), encoding="utf-8")
        return folder

    @classmethod
    def read(cls, folder: Path) -> Record:
        plain = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        return cls(**plain, logits=load_file(folder / "logits.safetensors")["logits"])


def record(
    model: PreTrainedModel,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Iterable[int],
    rows: Sequence[dict[str, Any]],
    answered: Sequence[tuple[list[int], list[int]]],
    served: Sequence[dict[str, Any]] = (),
) -> Record:
    """Take down what the trained model says on held-out rows and prompts, and what is known of its folder.

    Args:
        model: as trained, its adapter on it.
        recipe: names its base.
        tokenizer: with the chat template that was trained with.
        stop_ids: every stop token found in training.
        rows: `{"input_ids", "labels"}`; as many as the budget of logits allows, all where `recipe.base` is to be measured.
        answered: prompts and the replies the trained model gave, from its evaluation.
        served: from `served_prompts`.
    """
    budget = LOGITS_BUDGET // shape(tables(model)[0])[0]
    kept = list(_supervised(rows, None if recipe.base == "measured" else budget))
    logits: list[torch.Tensor] = []
    losses, left = [], budget
    for found, loss in spoken([ids for ids, _ in kept], [at for _, at in kept], model):
        losses.append(loss)
        logits.append(found[:left].clone())
        left -= len(logits[-1])
    prompts, replies = zip(*answered[:PROMPTS], strict=True)
    return Record(
        rows=[ids for ids, _ in kept],
        positions=[at for _, at in kept],
        loss=torch.cat(losses).mean().item(),
        logits=torch.cat(logits),
        prompts=list(prompts),
        replies=list(replies),
        max_new_tokens=recipe.max_new_tokens,
        stop_ids=sorted(stop_ids),
        template=fingerprint(tokenizer.chat_template),
        template_kwargs=dict(recipe.template_kwargs),
        response_template=getattr(tokenizer, "response_template", None),
        served=list(served),
        checkpoint=_checkpoint(recipe, model),
        not_loaded=[*(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or [])],
        tied=is_tied(model),
    )


def served_prompts(parts: Iterable[Any], count: int = PROMPTS) -> list[dict[str, Any]]:
    """Contexts that were trained on, evenly spread, with the messages they come from.

    Args:
        parts: with `conversations` and their `turns`, as `prepare` gives them.
    """
    pairs = [(part.conversations, part.turns) for part in parts]
    total = sum(len(turns) for _, every in pairs for turns in every)
    every = ((c, turn) for both in pairs for c, turns in zip(*both, strict=True) for turn in turns)
    chosen = list(islice(every, 0, None, max(1, total // count)))[:count]
    return [
        {"messages": c["messages"][: turn.message_index], "tools": c["tools"] or None, "ids": turn.prompt_ids, "source": c["source"]}
        for c, turn in chosen
    ]


def _supervised(rows: Iterable[dict[str, Any]], budget: int | None) -> Iterator[tuple[list[int], list[int]]]:
    """The ids of each row, and the positions before its supervised tokens; `budget` positions in all."""
    left = budget
    for row in rows:
        here = [i - 1 for i, label in enumerate(row["labels"]) if label != IGNORED and i > 0][:left]
        if not here:
            return
        left = None if left is None else left - len(here)
        yield list(row["input_ids"]), here


@torch.no_grad()
def spoken(
    rows: Sequence[list[int]], positions: Sequence[list[int]], model: PreTrainedModel
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What a model says in each row, one at a time and so without padding.

    Yields:
        logits `(positions, vocabulary)` in float32 on the CPU, and the loss `(positions)` of the tokens that follow, in nats.
    """
    model.eval()
    for ids, at in tqdm(list(zip(rows, positions, strict=True)), desc="comparing", disable=None, delay=2, leave=False):
        out = model(input_ids=torch.tensor([ids], device=model.device), logits_to_keep=torch.tensor(at, device=model.device))
        logits = out.logits[0].float().cpu()
        yield logits, torch.nn.functional.cross_entropy(logits, torch.tensor([ids[i + 1] for i in at]), reduction="none")


def _checkpoint(recipe: Recipe, model: PreTrainedModel) -> dict[str, list[int]] | None:
    """The names and shapes that the deployed folder is to have: those of the base, its tables as long as the model's.

    A checkpoint that was quantised when it was written has other names and shapes by its nature.
    """
    if recipe.from_scratch:
        return None
    found = layout(recipe.model, recipe.revision)
    if not found or any(".quant_state" in name or name.endswith(("_scales", ".SCB", "weight_scale_inv")) for name in found):
        return None
    after = shape(tables(model)[0])
    before = max((sizes for name, sizes in found.items() if "embed" in name and len(sizes) == 2), default=after)
    return {name: [*(after if sizes == before else sizes)] for name, sizes in found.items()}
