"""Settings that are seldom meant: each with the value found, what is usual, and the field to change.

Rules of thumb for AdamW, so they warn and never stop a run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import get_scheduler

from ..recipe import Recipe

LORA_RATE = 2e-4  # whatever the size (QLoRA, arXiv 2305.14314, took 2e-4 up to 13B and 1e-4 above)
FULL_RATES = {7e9: 2e-5, 70e9: 1e-5, 400e9: 5e-6}  # parameters: rate; between them a line in logarithms, flat outside
FACTOR = 5  # how far from the usual rate is still usual, either way
SMALL_FACTOR = 10  # and upwards for full fine-tuning below the smallest size above: small models bear more
TOY = 100e6  # parameters below which no such rule holds
EPOCHS, GRAD_NORM = 3, 1.0


def warnings(recipe: Recipe, config: Any, parameters: int | None) -> list[str]:
    """One line for each setting out of the ordinary.

    Args:
        recipe, config: resolved; the recipe's adapter tells LoRA from full fine-tuning.
        parameters: the base model's; `None` where unknown, and nothing is said about the learning rate.
    """
    return [*_rate(recipe, config, parameters), *_first_step(config), *_epochs(config), *_clipping(config)]


def usual_rates(adapter: Any, parameters: int) -> tuple[float, float, float] | None:
    """The lowest, the typical and the highest usual learning rate; `None` where no rule is known.

    Args:
        adapter: a `PeftConfig`, or `None` for full fine-tuning; of adapters, the rule knows LoRA only.
        parameters: of the base model.
    """
    if parameters < TOY:
        return None
    if adapter is not None:
        return (LORA_RATE / FACTOR, LORA_RATE, LORA_RATE * FACTOR) if adapter.peft_type == "LORA" else None
    sizes, rates = np.log(list(FULL_RATES)), np.log(list(FULL_RATES.values()))
    usual = float(np.exp(np.interp(np.log(parameters), sizes, rates)))
    return usual / FACTOR, usual, usual * (SMALL_FACTOR if parameters < min(FULL_RATES) else FACTOR)


def _rate(recipe: Recipe, config: Any, parameters: int | None) -> list[str]:
    usual = usual_rates(recipe.adapter, parameters) if parameters and "adamw" in str(config.optim).lower() else None
    if usual is None or 0.99 * usual[0] <= config.learning_rate <= 1.01 * usual[2]:
        return []
    low, typical, high = (f"{rate:.2g}" for rate in usual)
    method = "LoRA" if recipe.adapter is not None else f"full fine-tuning of {_size(parameters or 0)} parameters"
    text = f"learning_rate is {config.learning_rate:.2g}; usual for {method} is about {typical} ({low} to {high})"
    return [f"{text}: --learning_rate {typical}"]


def _size(parameters: int) -> str:
    return f"{parameters / 1e9:.2g} billion" if parameters < 10e9 else f"{parameters / 1e9:.0f} billion"


def _epochs(config: Any) -> list[str]:
    if config.max_steps > 0 or config.num_train_epochs <= EPOCHS:
        return []
    text = f"num_train_epochs is {config.num_train_epochs:g}; usual is 1 to {EPOCHS}, beyond which a model learns its data by heart"
    return [f"{text}: --num_train_epochs {EPOCHS}"]


def _first_step(config: Any) -> list[str]:
    """Upstream's warm-ups begin at 0."""
    kind, warmup = config.lr_scheduler_type, config.get_warmup_steps(1000)
    if kind == "cosine_with_min_lr" or not warmup:
        return []  # that one is ours
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        first = get_scheduler(kind, optimizer, warmup, 1000, config.lr_scheduler_kwargs).get_last_lr()[0]
    except (TypeError, ValueError):
        return []  # one that wants more than that
    if first:
        return []
    text = f"the first step changes nothing: the warm-up of lr_scheduler_type {kind.value} begins at 0"
    return [f"{text}; without that field the rate begins above it, and falls as a cosine"]


def _clipping(config: Any) -> list[str]:
    norm = config.max_grad_norm
    if norm is not None and 0 < norm <= GRAD_NORM:
        return []
    found = f"is {norm:g}" if norm else "is off"
    return [f"max_grad_norm {found}; usual is {GRAD_NORM}, so that no single batch throws the weights: --max_grad_norm {GRAD_NORM}"]
