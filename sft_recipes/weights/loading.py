"""The tokenizer, the base model, its quantisation, and the adapter that is trained on it.

Nothing of a model's repository is executed: `trust_remote_code` is off, and weights are read from safetensors only, never from a
pickle. A model that needs either is refused, with the reason.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..hub import trouble
from ..recipe import Recipe, RecipeError, nearest
from . import embedding
from .templates import CHOICE, control_tokens, fitted, response_template
from .templates import chat_template as chat_template
from .tokens import as_special, new_ids, reserved

SAFE = {"trust_remote_code": False}
NO_CODE = "Python code from its repository, which is never run here; take a model that transformers itself knows"
SMALLER = "quantise it to 4 bits with `quantization`, or take a smaller one"
PICKLED = "its weights are not in safetensors, and a pickle (pytorch_model.bin) can run code when it is read"
CONVERTED = "`AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)` makes safetensors of weights that you trust"
# What transformers, tokenizers, safetensors and the HTTP client raise of a model that is absent, refused, cut off or of a later version.
LOADING = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError, HTTPError)
PAD = re.compile(r"\W*(finetune_right_)?pad(ding)?(_id)?\W*", re.IGNORECASE)  # Llama 3's too; not Qwen's `<|image_pad|>`


def device() -> torch.device:
    """Where this process computes: its CUDA device, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def load_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The base model's tokenizer with the recipe's chat and response template; control tokens are one special token each.

    It changes nothing that is already there: ids stay, and a recipe that names neither template nor stop token gets the
    base's own. A pad token, if there is none, is one named so or the eos token; what is padded is never attended to.

    Raises:
        RecipeError: the model is not there, or no chat template can be found or rendered.
    """
    tokenizer = own_tokenizer(recipe.model, recipe.revision)
    if recipe.chat_template is not None:
        tokenizer.chat_template = fitted(recipe, tokenizer)
        tokenizer.response_template = response_template(recipe.chat_template)  # the base's own reads another template's replies
    if not tokenizer.chat_template:
        raise RecipeError(f"{recipe.model}: the tokenizer has no chat template; name one with `chat_template`: {CHOICE}")
    if _dressed(recipe):
        tokenizer = as_special(tokenizer, control_tokens(recipe, tokenizer), recipe.revision)
    if tokenizer.pad_token is None:
        named = (token.content for token in tokenizer.added_tokens_decoder.values() if PAD.fullmatch(token.content))
        tokenizer.pad_token = next(named, tokenizer.eos_token or recipe.stop_token)
    return tokenizer


def own_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub id as it is.

    Raises:
        RecipeError: it is not there.
    """
    try:
        return AutoTokenizer.from_pretrained(path, revision=revision, **SAFE)
    except LOADING as error:
        raise RecipeError(_not_there(path, error)) from error


def _dressed(recipe: Recipe) -> bool:
    """Whether the recipe gives its base a template or a stop token, which the base may not know."""
    return recipe.chat_template is not None or recipe.stop_token is not None


def load_model(
    path: str, dtype: str, quantization: Any = None, on: torch.device | None = None, revision: str | None = None
) -> PreTrainedModel:
    """A model in the class its checkpoint names (Gemma 3 keeps its multimodal class).

    Args:
        path: folder or Hub id.
        dtype: of its weights, such as `bfloat16`; `auto` takes the checkpoint's own.
        quantization: a `BitsAndBytesConfig`, or `None`.
        on: where its weights are put; by default this process's device.
        revision: of a Hub id: a branch, tag or commit.

    Raises:
        RecipeError: the model is not there or cannot be loaded.
    """
    try:
        model = _architecture(path, revision)[0].from_pretrained(
            path,
            revision=revision or "main",
            dtype=dtype,
            quantization_config=quantization,
            device_map={"": on or device()},
            use_safetensors=True,
            **SAFE,
        )
    except LOADING as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise RecipeError(f"model '{path}' does not fit into the memory of {on or device()}; {SMALLER}") from error
        raise RecipeError(_not_there(path, error)) from error
    if quantization is not None and device().type == "cpu":
        _compute_alike_in_training_and_evaluation(model)
    return model


def load_base(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, seed: int = 42, on: torch.device | None = None) -> PreTrainedModel:
    """The base model, with a row in its embedding (and head) for every token that was added to its tokenizer.

    A table that has spare rows stays as it is. Rows that have to be made start as the mean of the others, so that a merge,
    which loads the base anew, gets the same.

    Args:
        recipe: names the model, its dtype and its quantisation.
        tokenizer: from `load_tokenizer`.
        seed: of the weights of a model that is trained from scratch.
        on: where a checkpoint's weights are put; by default this process's device.

    Raises:
        RecipeError: the model is not there, cannot be loaded, or has a quantised table that cannot grow.
    """
    if recipe.from_scratch:
        model = new_model(recipe, seed)
    else:
        model = load_model(recipe.model, recipe.dtype, recipe.quantization, on, recipe.revision)
    rows = max(_new_ids(recipe, tokenizer), default=-1) + 1
    if rows > model.get_input_embeddings().weight.shape[0]:
        embedding.grow(model, rows)
    return model


def new_model(recipe: Recipe, seed: int) -> PreTrainedModel:
    """A model of the recipe's configuration with weights drawn anew, on this process's device."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        architecture, config = _architecture(recipe.model, recipe.revision)
        return architecture._from_config(config, dtype=getattr(torch, recipe.dtype)).to(device())


def _new_ids(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return new_ids(own_tokenizer(recipe.model, recipe.revision), tokenizer) if _dressed(recipe) else []


def adapter(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Any:
    """The recipe's adapter, which also trains the rows of control tokens that the base has never learned.

    Those are new tokens, and ones of the vocabulary whose row is still untrained. Without its own row a stop token cannot be
    told from other unused ones, and the model does not stop. Rows that the recipe's adapter already trains are left to it.

    Args:
        recipe: its `adapter` is not changed.
        tokenizer: from `load_tokenizer`.
        model: from `load_base`.

    Returns:
        a `PeftConfig` with `trainable_token_indices` where needed, or `None` for a recipe without adapter.

    Raises:
        RecipeError: the adapter's kind cannot train single rows, or the rows are quantised.
    """
    config = copy.deepcopy(recipe.adapter)  # PEFT and TRL write into it
    if config is None or not _dressed(recipe) or getattr(config, "trainable_token_indices", None) is not None:
        return config
    vocabulary = tokenizer.get_vocab()
    written = [vocabulary[token] for token in control_tokens(recipe, tokenizer) if token != tokenizer.bos_token]  # never said
    unused = [*(vocabulary[token] for token in reserved(vocabulary)), *range(len(tokenizer), len(tokenizer) + 256)]
    rows = {*_new_ids(recipe, tokenizer), *embedding.untrained(model, written, unused)}
    return embedding.train_rows(config, model, sorted(rows)) if rows else config


def _compute_alike_in_training_and_evaluation(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from a bfloat16 kernel that it uses on some CPUs, in evaluation only."""
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False


def trainable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The trainable weights by name, as they are now: they outlast TRL's change of type, see `settle`."""
    return {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}


def settle(model: torch.nn.Module, exact: Mapping[str, torch.Tensor] | None = None) -> None:
    """Make a model ready to train after TRL and PEFT have wrapped it.

    Trainable weights in float32, where an update of 1e-4 of a weight still changes it (TRL leaves a QLoRA adapter in
    bfloat16, in which it is lost); and the head with the `bias` that TRL's fused loss reads on CUDA, which PEFT hides.

    Args:
        model: wrapped.
        exact: from `trainable`, of an adapter that was loaded: what it was before TRL rounded it to bfloat16.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = (exact or {}).get(name, parameter.data).float()
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    if head is not None and not hasattr(head, "bias"):
        head.bias = None  # it has none, see `embedding.train_rows`


def _not_there(path: str, error: Exception) -> str:
    folder = Path(path)
    if folder.is_absolute() and not folder.is_dir():
        return f"model '{path}': no such folder"
    beside = (
        [p.name for p in folder.parent.iterdir() if p.is_dir() and p != folder] if folder.parent.is_dir() and not folder.is_dir() else []
    )
    if not folder.is_dir() and (known := trouble(error, path)):
        return known + nearest(folder.name, beside)
    reason = _unsafe(path, str(error)) or (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"model '{path}' cannot be loaded{nearest(folder.name, beside)}: {reason}"


def _unsafe(path: str, said: str) -> str:
    """Why a model is refused that could be loaded only by running what comes with it; empty where that is not the reason."""
    if "trust_remote_code" in said:
        return f"it needs `trust_remote_code`: {NO_CODE}"
    if "cannot be loaded with `safetensors`" in said:  # of a Hub id; `unweighted` looks into folders
        return f"{PICKLED}; {CONVERTED}"
    return ""


def unweighted(path: str, revision: str | None = None) -> PreTrainedModel:
    """The model without its weights, on the meta device: its modules, and parameters with shapes alone.

    Raises:
        RecipeError: the model is not there, or its folder has its weights as a pickle alone.
    """
    folder = Path(path)
    if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
        raise RecipeError(f"model '{path}' cannot be loaded: {PICKLED}; {CONVERTED}")
    try:
        architecture, config = _architecture(path, revision)
    except LOADING as error:
        raise RecipeError(_not_there(path, error)) from error
    with torch.device("meta"):
        return architecture._from_config(config)


def _architecture(path: str, revision: str | None = None) -> tuple[Any, Any]:
    """The class that a checkpoint names, and its configuration."""
    config = AutoConfig.from_pretrained(path, revision=revision, **SAFE)
    return getattr(transformers, (config.architectures or [""])[0], AutoModelForCausalLM), config
