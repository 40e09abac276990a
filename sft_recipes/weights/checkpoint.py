"""All weights of a model from a checkpoint of its training, whatever they are called there.

transformers' trainer loads a checkpoint by the names in its file and passes over those that do not fit. It has written them, though,
as the model's first release named them: of a Gemma 3 with vision, for one, nothing would be loaded, and nothing said (a test holds it).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..recipe import RecipeError


def restore(model: Any, folder: Path) -> None:
    """Load a checkpoint into a model in place, through the class that knows both namings.

    Args:
        model: with all of its own weights, no adapter.
        folder: a checkpoint of it, in safetensors.

    Raises:
        RecipeError: the checkpoint lacks a weight of the model's, or has another one.
    """
    saved, found = type(model).from_pretrained(
        folder, dtype=model.dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    if names := sorted({*found["missing_keys"], *found["unexpected_keys"]}):
        raise RecipeError(f"{folder} is no checkpoint of this model: {', '.join(names[:5])}")
    model.load_state_dict(saved.state_dict())
