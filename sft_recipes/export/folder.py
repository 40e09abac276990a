"""The deployable folder: what is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from ..checkpoints import deployed, refuse_full
from ..recipe import Recipe

SHARD = "4GB"
PROCESSOR = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, stop_ids: set[int], folder: Path) -> None:
    """Everything a server loads: weights, configuration, tokenizer, chat template, stop tokens, processor.

    Args:
        model: whole, in the dtype it is deployed in; its `generation_config` is replaced.
        tokenizer: with the chat template that was trained with.
        recipe: names the base, whose processor files are copied.
        stop_ids: every stop token found in training.
        folder: made.

    Raises:
        RecipeError: there is not enough room on the disk.
        OSError: writing failed.
    """
    refuse_full(folder.parent, deployed(model), "the merged model", "make room, then merge")
    model.generation_config = stopping(model.generation_config, stop_ids, tokenizer.pad_token_id)
    model.save_pretrained(folder, max_shard_size=SHARD)
    for shard in folder.glob("*.safetensors"):  # written for their owner alone, and a server is often another
        shard.chmod((folder / "config.json").stat().st_mode)
    tokenizer.save_pretrained(folder)
    _copy_processor(recipe, folder)


def _copy_processor(recipe: Recipe, folder: Path) -> None:
    """The base's image and audio settings, as they are; a chat template among them would compete with ours."""
    for name in PROCESSOR:
        found = of_base(recipe, name)
        if found is not None:
            settings = json.loads(found.read_text(encoding="utf-8"))
            settings.pop("chat_template", None)
            (folder / name).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def of_base(recipe: Recipe, name: str) -> Path | None:
    """A file of the base model, if it has one; for a Hub id it may be fetched."""
    where: dict[str, Any] = {"revision": recipe.revision, "_raise_exceptions_for_missing_entries": False}
    found = cached_file(recipe.model, name, **where, _raise_exceptions_for_connection_errors=False)
    return Path(found) if found else None


def stopping(config: GenerationConfig | None, stop_ids: set[int], pad_id: int | None) -> GenerationConfig:
    """A generation config that halts at every stop token, those of the base first; the pad token is none of them."""
    config = config or GenerationConfig()
    config.eos_token_id = [*dict.fromkeys(i for i in [*declared_stops(config), *sorted(stop_ids)] if i != pad_id or i in stop_ids)]
    config.pad_token_id = pad_id
    return config


def declared_stops(config: GenerationConfig) -> list[int]:
    """What a server would halt at: the ids under `eos_token_id`, which may be one, several or none."""
    declared = config.eos_token_id
    return [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
