"""What will be trained, seen without weights: a model on the meta device with the recipe's adapter put on it."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from peft import get_peft_model
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn

from ..recipe import Recipe, RecipeError, nearest


def adapted(model: Any, recipe: Recipe) -> nn.Module:
    """A model with the recipe's adapter: which parameters there will be, of which shapes, and which are trained.

    Quantisation changes neither. Rows of control tokens that the base never learned, and rows its tables grow for new ones,
    are found in weights and tokenizer when the run starts, so they are not here: see `loading.adapter` and `embedding`.

    Args:
        model: from `loading.unweighted`; changed.
        recipe: its `adapter` is not changed.

    Raises:
        RecipeError: the adapter fits no module of the model, its settings do not fit, or it cannot be merged.
    """
    config = copy.deepcopy(recipe.adapter)  # PEFT writes into it
    if config is None:
        return model
    if isinstance(getattr(config, "init_lora_weights", None), str):
        config.init_lora_weights = True  # PiSSA, LoftQ and others start from the weights
    layers = dict.fromkeys(name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear))
    try:
        # not `low_cpu_mem_usage`, which has AdaLoRA train what it keeps frozen
        with torch.device("meta"), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            whole = get_peft_model(model, config)
        _refuse_unmergeable(whole, [str(warning.message) for warning in said])
        return whole
    except NoMatchingPeftModuleError as error:
        asked = config.target_modules if isinstance(config.target_modules, (set, list)) else []
        meant = "".join(nearest(name, layers) for name in sorted(asked))
        raise RecipeError(f"adapter: {_sentence(error)}{meant} Linear layers of {recipe.model}: {', '.join(layers)}") from error
    except ValueError as error:
        raise RecipeError(f"adapter: {_sentence(error)}") from error


def _refuse_unmergeable(model: Any, warned: list[str]) -> None:
    """Before it is trained: an adapter that PEFT cannot merge could not be deployed as one model."""
    kind = type(model.active_peft_config).__name__
    if not hasattr(model.base_model, "merge_and_unload"):
        raise RecipeError(f"adapter: PEFT cannot merge a {kind} into its base, and a run ends in one whole model; use another kind")
    if never := next((text for text in warned if "merging LoRA weights won't be possible" in text), None):
        raise RecipeError(f"adapter: {_sentence(never)}, so it could not be merged after training; leave `lora_bias` out")


def _sentence(error: Exception | str) -> str:
    return str(error).strip().partition(". ")[0]
