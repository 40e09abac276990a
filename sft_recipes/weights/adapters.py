"""An adapter's folder: written so that PEFT and servers load it with nothing of ours, and read again to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel

from ..recipe import Recipe, RecipeError
from ..whole import put, unfinished
from .identity import base_of, record
from .loading import device


def save_adapter(model: PeftModel, tokenizer: Any, recipe: Recipe, folder: Path, weights: Any = None) -> Path:
    """Write a trained adapter as PEFT loads it, with the tokenizer, its chat template, and `base.json`.

    Its configuration names the base by id and commit, or by the folder's whole path, so that `AutoPeftModelForCausalLM` finds it
    from anywhere.

    Args:
        model: base and adapter.
        tokenizer: from `load_tokenizer`.
        recipe: names the base.
        folder: written whole or not at all.
        weights: its trained tensors by their names in the model, where the model's own lie in parts.

    Returns:
        `folder`.

    Raises:
        RecipeError: the disk was full.
    """
    base = base_of(recipe)
    for config in model.peft_config.values():
        config.base_model_name_or_path = str(Path(recipe.model).resolve()) if Path(recipe.model).is_dir() else recipe.model
        config.revision = base["revision"]
    with unfinished(folder) as building:
        model.save_pretrained(str(building), state_dict=weights)
        tokenizer.save_pretrained(building)
        record(building, recipe)
        put(building, folder)
    return folder


def saved_adapter(folder: Path) -> Any:
    """The `PeftConfig` of an adapter's folder, to be trained again.

    Raises:
        RecipeError: there is none, or PEFT cannot read it.
    """
    if not (folder / "adapter_config.json").is_file():
        raise RecipeError(f"{folder}: no adapter_config.json, so no adapter")
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RecipeError(f"{folder}: no adapter that PEFT can read: {error}") from error
    config.inference_mode = False
    return config


def load_adapter(model: Any, folder: Path) -> PeftModel:
    """A saved adapter on its base, its weights trainable; rows of tokens and whole modules that were saved with it too.

    Args:
        model: from `load_base`; written into.
        folder: from `save_adapter`.

    Raises:
        RecipeError: its weights are not in safetensors: PEFT would read a pickle in their place.
    """
    refuse_pickled(folder)
    return PeftModel.from_pretrained(model, str(folder), is_trainable=True, torch_device=str(device()))


def refuse_pickled(folder: Path) -> None:
    """Hold PEFT back from the pickle that it would read where an adapter has no safetensors.

    Raises:
        RecipeError: it has none.
    """
    if not (folder / "adapter_model.safetensors").is_file():
        raise RecipeError(f"{folder}: no adapter_model.safetensors; weights are read from safetensors only, never from a pickle")
