"""The tokenizer, the base model, its quantisation and its adapter.

`trust_remote_code` is off and weights are read from safetensors only; a model that needs either is refused by transformers.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .recipe import Recipe, RecipeError, nearest

SAFE = {"trust_remote_code": False}


def device() -> torch.device:
    """Where this process computes: its CUDA device, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def load_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, with the recipe's chat template where it has none of its own.

    Raises:
        RecipeError: the model is not there, or no chat template can be found.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(recipe.model, **SAFE)
    except (OSError, ValueError) as error:
        raise RecipeError(_not_there(recipe.model, error)) from error
    if recipe.chat_template is not None:
        tokenizer.chat_template = chat_template(recipe.chat_template)
    if not tokenizer.chat_template:
        raise RecipeError(f"{recipe.model}: the tokenizer has no chat template; name one with `chat_template`")
    return tokenizer


def chat_template(name: str) -> str:
    """A chat template's text, from a `.jinja` file or by the name of one of TRL's own (`gemma3`, `qwen3`, ...).

    TRL's are found in the installed package, without importing it.

    Raises:
        RecipeError: neither a file nor a name TRL has.
    """
    if name.endswith((".jinja", ".j2")):
        if not Path(name).is_file():
            raise RecipeError(f"{name}: no such chat template file")
        return Path(name).read_text(encoding="utf-8")
    spec = importlib.util.find_spec("trl")
    folder = Path(spec.origin).parent / "chat_templates"  # type: ignore[union-attr,arg-type]
    known = [file.stem for file in folder.glob("*.jinja") if not file.stem.endswith("_training")]
    if name not in known:
        raise RecipeError(f"unknown chat_template '{name}'{nearest(name, known)}")
    return (folder / f"{name}.jinja").read_text(encoding="utf-8")


def load_model(path: str, dtype: str, quantization: Any = None) -> PreTrainedModel:
    """A model in the class its checkpoint names (Gemma 3 keeps its multimodal class), on this process's device.

    Args:
        path: folder or Hub id.
        dtype: of its weights, such as `bfloat16`; `auto` takes the checkpoint's own.
        quantization: a `BitsAndBytesConfig`, or `None`.

    Raises:
        RecipeError: the model is not there or cannot be loaded.
    """
    try:
        config = AutoConfig.from_pretrained(path, **SAFE)
        architecture = getattr(transformers, (config.architectures or [""])[0], AutoModelForCausalLM)
        model = architecture.from_pretrained(
            path,
            dtype=dtype,
            quantization_config=quantization,
            device_map={"": device()},
            use_safetensors=True,
            **SAFE,
        )
    except (OSError, ValueError) as error:
        raise RecipeError(_not_there(path, error)) from error
    if quantization is not None and device().type == "cpu":
        _compute_alike_in_training_and_evaluation(model)
    return model


def _compute_alike_in_training_and_evaluation(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from a bfloat16 kernel that it uses on some CPUs, in evaluation only."""
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False


def adapter_to_float32(model: torch.nn.Module) -> None:
    """Trainable weights in float32, where an update of 1e-4 of a weight still changes it (in bfloat16 it is lost)."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _not_there(path: str, error: Exception) -> str:
    folder = Path(path)
    if folder.is_absolute() and not folder.is_dir():
        return f"model '{path}': no such folder"
    beside = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"model '{path}' cannot be loaded{nearest(folder.name, beside)}: {reason}"


def count_parameters(path: str) -> int:
    """How many parameters a checkpoint's architecture has, without reading its weights.

    Raises:
        RecipeError: the model is not there.
    """
    try:
        config = AutoConfig.from_pretrained(path, **SAFE)
    except (OSError, ValueError) as error:
        raise RecipeError(_not_there(path, error)) from error
    architecture = getattr(transformers, (config.architectures or [""])[0], AutoModelForCausalLM)
    with torch.device("meta"):
        return sum(p.numel() for p in architecture._from_config(config).parameters())
