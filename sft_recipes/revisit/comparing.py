"""Finished runs and models of any origin, scored on the same held-out conversations, each as it would be served."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from .. import evaluate as judging
from ..config import resolve
from ..export.record import spoken
from ..recipe import RecipeError
from ..rows import IGNORED
from ..run import find
from .contenders import Contender, of_model, of_run, told_apart
from .opening import reopen


@dataclass
class Compared:
    """What was found, by the name that each model was given.

    Attributes:
        scores: of those that could be judged, `eval_loss` in nats among them.
        faults: why the others could not.
        remarks: what to know when the scores are read.
    """

    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def evaluate(name: str, recipe: str = "", scale: str = "auto", adapter: bool = False, **changed: Any) -> dict[str, float]:
    """The scores of one run or model; arguments as for `compare`.

    Raises:
        RecipeError: it is not there, or cannot be judged on these conversations.
    """
    found = compare([name], recipe, scale, adapter, **changed)
    if found.faults:
        raise RecipeError(*found.faults)
    return found.scores[name]


def compare(names: Sequence[str], recipe: str = "", scale: str = "auto", adapter: bool = False, **changed: Any) -> Compared:
    """Score runs and models one after another on the same held-out conversations.

    Args:
        names: runs (their folder or their recipe's name) and models (a folder or a Hub id).
        recipe: whose held-out conversations; without one, each run's own, and for a model those of the first run.
        scale: of `recipe`.
        adapter: judge the adapter of each run on its base, instead of the folder it deployed.
        **changed: fields of the recipe; `dtype` and `quantization` are otherwise the checkpoint's own for a model.

    Raises:
        RecipeError: a name that nobody knows, a model without a recipe, or conversations that differ between the runs.
    """
    runs = told_apart(names, recipe)
    said = resolve(recipe, scale, **changed) if recipe else None
    first = next((run for run in runs.values() if run), None)
    found, contenders = Compared(), []
    for name, run in runs.items():
        with _noted(found.faults, name):
            if run:
                contenders.append(of_run(name, run, said, adapter, changed))
            else:
                contenders.append(of_model(name, said or reopen(str(first and first.folder), **changed)[1], changed))
    _refuse_different(contenders)
    found.remarks = [*([said.remark] if said and said.remark else []), *_remarks(contenders)]
    for contender in contenders:
        with _noted(found.faults, contender.name):
            found.scores[contender.name] = _judged(contender)
        gc.collect()  # a model is a ring of references, and the next one needs its room
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return found


@contextmanager
def _noted(faults: list[str], name: str) -> Iterator[None]:
    """What is wrong with one model is written down, and the others are judged."""
    known = (str(find(name).folder), f"{name}:", f"model '{name}'")
    try:
        yield
    except torch.OutOfMemoryError:
        faults.append(f"{name}: it does not fit into the memory of this device")
    except RecipeError as error:
        faults += [fault if fault.startswith(known) else f"{name}: {fault}" for fault in error.faults]


def _refuse_different(contenders: Sequence[Contender]) -> None:
    if len({contender.prepared.held_out.hash for contender in contenders}) > 1:
        each = ", ".join(f"{c.name}: {len(c.prepared.held_out.conversations):,}" for c in contenders)
        raise RecipeError(f"the held-out conversations are not the same ({each}); name those that judge all of them with --recipe NAME")


def _remarks(contenders: Sequence[Contender]) -> list[str]:
    found = [remark for contender in contenders for remark in contender.remarks]
    tokens = {c.name: c.prepared.held_out.supervision.supervised_tokens for c in contenders}
    if len(set(tokens.values())) > 1:
        each = ", ".join(f"{count:,} of {name}" for name, count in tokens.items())
        found.append(f"eval_loss and length count each model's own tokens, and do not compare where those are others: {each}")
    return found


def _judged(contender: Contender) -> dict[str, float]:
    """Load a model, generate every held-out turn, and score it."""
    model, prepared = contender.load(), contender.prepared
    stops, tokenizer = contender.stops(model), prepared.tokenizer
    prompts = [question.prompt_ids for question in prepared.questions]
    limit = prepared.recipe.max_new_tokens
    replies = judging.generate(model, prompts, stops, tokenizer.pad_token_id, limit, desc=f"generating, {contender.name}")
    samples = judging.judge(prepared.questions, replies, tokenizer, stops, contender.score)
    return judging.scores(samples, eval_loss=held_out_loss(model, prepared.held_out.rows))


def held_out_loss(model: Any, rows: Sequence[Mapping[str, Any]]) -> float:
    """Mean negative log-likelihood over the supervised tokens of all rows, in nats.

    Args:
        model: loaded.
        rows: `{"input_ids", "labels"}`.
    """
    positions = [[i - 1 for i, label in enumerate(row["labels"]) if label != IGNORED and i > 0] for row in rows]
    losses = [loss for _, loss in spoken([list(row["input_ids"]) for row in rows], positions, model)]
    return torch.cat(losses).double().mean().item()
