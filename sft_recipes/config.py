"""`RecipeConfig`, and a recipe's name plus what a person changed to a resolved recipe. Half of the room that knows TRL."""

from __future__ import annotations

import dataclasses
import logging
import re
import sys
import warnings
from argparse import ArgumentTypeError
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from huggingface_hub import constants
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool
from trl import SFTConfig

from .lineage import begin
from .optim.schedule import FLOOR
from .recipe import Recipe, RecipeError, load_recipe, unknown_name
from .scores import LOWER

SCALES = ("auto", "full", "tiny")
OWN_TYPES = {f.name: str(f.type) for f in dataclasses.fields(Recipe)}
OWN_FIELDS = OWN_TYPES.keys() - {"config", "ablation", "tiny"}
CHOICES = {
    "dtype": ("bfloat16", "float16", "float32"),
    "mask": ("completion", "everything"),
    "loss_per": ("token", "example"),
    "overlong": ("trim", "drop", "refuse"),
    "packing": ("auto", "tree", "bfd", "none"),
    "bad_step": ("stop", "skip"),
    "base": ("trained", "original", "measured"),
}
FOLDER = re.compile(r"[^\s._/\\][^/\\\n]*")  # what an arm may be called
RUN_FILES = {"adapter", "ablation", "checkpoints", "history", "merged", "metrics", "recipe", "report", "samples", "wandb"}


@dataclass
class RecipeConfig(SFTConfig):
    """TRL's `SFTConfig` with this project's defaults; every field is upstream's and means what it means there.

    AdamW with betas (0.9, 0.95) and decay 0.1, on matrices only; a warm-up that begins above 0, then cosine to a tenth of the
    peak; no NaN hidden from the logged loss; rows of similar length share a batch; one checkpoint an epoch, two kept; wandb.
    """

    adam_beta2: float = 0.95
    weight_decay: float = 0.1
    lr_scheduler_type: str = "cosine_with_min_lr"
    lr_scheduler_kwargs: dict | str | None = None
    greater_is_better: bool | None = None
    logging_nan_inf_filter: bool = False
    train_sampling_strategy: str = "group_by_length"
    save_strategy: str = "epoch"
    save_total_limit: int | None = 2
    report_to: None | str | list[str] = "wandb"  # noqa: RUF036  HfArgumentParser wants None first

    def __post_init__(self) -> None:
        if self.lr_scheduler_type == "cosine_with_min_lr" and not self.lr_scheduler_kwargs:
            self.lr_scheduler_kwargs = {"min_lr_rate": FLOOR}
        best = (self.metric_for_best_model or "").removeprefix("eval_")
        if self.greater_is_better is None and best in LOWER:  # upstream knows it of losses alone
            self.greater_is_better = False
        if self.greater_is_better is None and best == "length":
            raise ValueError("metric_for_best_model is length, and neither more nor less is better of itself; say greater_is_better")
        super().__post_init__()


CONFIG_FIELDS = {f.name for f in dataclasses.fields(RecipeConfig) if f.init} - OWN_FIELDS  # `packing` is ours


@dataclass(frozen=True)
class Resolved:
    """A recipe as it will run.

    Attributes:
        name: as typed, with dashes.
        scale: `full` or `tiny`.
        trainer_class: the recipe's `RecipeTrainer` subclass, for its hooks.
        recipe: at its scale, with the overrides applied.
        config: likewise.
        overrides: what the person changed, with the `arm` they chose: `resolve(name, scale, **overrides)` gives this again.
        remark: one sentence where `auto` chose the tiny scale, else empty.
        origin: the earlier run that this one starts from, as `lineage.begin` tells it; `None` for one that starts from its base.
    """

    name: str
    scale: str
    trainer_class: Any
    recipe: Recipe
    config: RecipeConfig
    overrides: dict[str, Any]
    remark: str = ""
    origin: dict[str, Any] | None = None


def resolve(name: str, scale: str = "auto", arm: str = "", **overrides: Any) -> Resolved:
    """Find a recipe, choose its scale, apply what the person changed.

    Args:
        name: the recipe, as `sft-recipes list` prints it.
        scale: `full`, `tiny`, or `auto`: full where a CUDA device is present.
        arm: one of the recipe's ablation; it differs from the recipe in its own fields, and lives in a folder inside the recipe's run.
        **overrides: any field of `Recipe` or `RecipeConfig` by its own name; texts are read as the field's type.

    Raises:
        RecipeError: an unknown recipe, scale, arm or field, or values that do not fit; all of them together.
    """
    hush()
    trainer_class: Any = load_recipe(name)
    if scale not in SCALES:
        raise RecipeError(unknown_name("scale", scale, SCALES))
    asked, scale = scale, scale if scale != "auto" else "full" if torch.cuda.is_available() or not trainer_class.recipe.tiny else "tiny"
    remark = f"No CUDA device here, so {name} runs at tiny scale: an embedded model and data, all else is real."
    base: Recipe = trainer_class.recipe.at(scale)
    faults = _ablation_faults(name, base, arm)
    base = _differing(base, arm)
    faults += _unknown_fields(base, overrides)
    given = {key: _typed(key, value, faults) for key, value in overrides.items()} if not faults else {}
    if faults:
        raise RecipeError(*faults)
    own = {key: value for key, value in given.items() if key in OWN_FIELDS}
    if "data" in own and "held_out" not in own:
        own["held_out"] = Recipe.held_out  # a person's data are judged on a part of themselves
    name = name.replace("_", "-")
    recipe, config, origin = _begun(name, base.with_fields(own), given, arm if arm in list(base.ablation)[1:] else "")
    changed = {"arm": arm, **overrides} if arm else overrides
    return Resolved(name, scale, trainer_class, recipe, config, changed, remark if (asked, scale) == ("auto", "tiny") else "", origin)


def _begun(name: str, recipe: Recipe, given: dict[str, Any], arm: str) -> tuple[Recipe, RecipeConfig, dict[str, Any] | None]:
    """The recipe as it starts, its configuration, and the run that it starts from.

    Raises:
        RecipeError: values that do not hold, in any of the three; all together.
    """
    wanted = _wanted(name, recipe, given, arm)
    faults, started, origin, config = [], recipe, None, None
    try:
        started, origin = begin(recipe, given, wanted["output_dir"])
    except RecipeError as error:
        faults += error.faults
    faults += _faults(started, recipe.from_scratch)
    try:
        config = _config(wanted)
    except RecipeError as error:
        faults += error.faults
    if faults or config is None:
        raise RecipeError(*faults)
    return started, config, origin


def _unknown_fields(recipe: Recipe, overrides: Iterable[str]) -> list[str]:
    """Fields that nobody knows, and fields of `Recipe` in its `config`, where upstream's of the same name would take them."""
    known = CONFIG_FIELDS | OWN_FIELDS
    ours = [key for key in recipe.config if key in OWN_FIELDS]
    found = [f"{unknown_name('field of `config`', key, ())}: {key} is a field of Recipe, not of its config" for key in ours]
    return found + [unknown_name("field", key, known) for key in {**recipe.config, **dict.fromkeys(overrides)} if key not in known]


def _ablation_faults(name: str, recipe: Recipe, arm: str) -> list[str]:
    """What does not hold in the names and fields of a recipe's arms, and an arm that it does not have."""
    found = [unknown_name("arm", arm, recipe.ablation)] if arm and arm not in recipe.ablation else []
    for i, (other, differs) in enumerate(recipe.ablation.items()):
        where, known = f"recipe '{name}', arm '{other}'", CONFIG_FIELDS | OWN_FIELDS
        found += [f"{where}: {unknown_name('field', key, known)}" for key in differs if key not in known]
        if not FOLDER.fullmatch(other) or other.partition(".")[0] in RUN_FILES:
            found.append(f"{where}: its run is a folder of that name inside the recipe's, where it cannot be; choose another name")
        if i == 0 and differs:
            found.append(f"{where}: the first arm is the recipe itself and differs in nothing; put an empty one in front")
    return found


def _differing(recipe: Recipe, arm: str) -> Recipe:
    """The recipe with an arm's fields laid over its own and over its `config`."""
    differs = recipe.ablation.get(arm, {})
    own = {key: value for key, value in differs.items() if key in OWN_FIELDS}
    config = {key: value for key, value in differs.items() if key in CONFIG_FIELDS}
    return recipe.with_fields({**own, "config": {**recipe.config, **config}})


def _faults(recipe: Recipe, drawn_anew: bool) -> list[str]:
    """Values of the recipe's own fields that do not hold, alone or together; `drawn_anew`: its first run was from scratch."""
    found = [unknown_name(key, str(getattr(recipe, key)), known) for key, known in CHOICES.items() if getattr(recipe, key) not in known]
    if recipe.mask == "everything" and not drawn_anew:
        found.append("mask is 'everything': it would train a base to write its user's words; it is for models trained from scratch")
    if recipe.from_scratch and (recipe.adapter is not None or recipe.quantization is not None):
        found.append("from_scratch: a model without trained weights has nothing to adapt or quantise; leave adapter and quantization out")
    if not 0 <= recipe.max_lost <= 1:
        found.append(f"max_lost is {recipe.max_lost:g}: it is a share, from 0 to 1")
    if recipe.row_tokens is not None and recipe.row_tokens < 1:
        found.append(f"row_tokens is {recipe.row_tokens}: a row takes at least one token")
    ratio = recipe.loraplus_lr_ratio
    if ratio is not None and (ratio <= 0 or recipe.adapter is None):
        found.append(f"loraplus_lr_ratio is {ratio:g}: it takes an adapter, and a number above 0 (the paper's is 16)")
    return found


def _wanted(name: str, recipe: Recipe, given: dict[str, Any], arm: str) -> dict[str, Any]:
    """The fields of the configuration: what fits the machine, the recipe's own, what the person changed."""
    gpu = torch.cuda.is_available()
    terminal = sys.stderr.isatty()
    machine = dict(
        use_cpu=not gpu,
        bf16=gpu and recipe.dtype == "bfloat16",
        gradient_checkpointing=gpu,
        dataloader_pin_memory=gpu,
        disable_tqdm=not terminal,
    )
    place = dict(output_dir=f"runs/{name}", run_name=name)
    wanted = {**machine, **place, **recipe.config, **{k: v for k, v in given.items() if k in CONFIG_FIELDS}}
    if arm:
        wanted |= {key: f"{wanted[key]}/{arm}" for key in place}
    return wanted


def _config(wanted: dict[str, Any]) -> RecipeConfig:
    try:
        config = RecipeConfig(**wanted)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"the configuration does not hold: {error}") from error
    faults = [f"{key} is {getattr(config, key)}, it must be above 0" for key in _POSITIVE if not _positive(getattr(config, key))]
    faults += [f"{key} is {getattr(config, key)}: {why}" for key, (value, why) in _FIXED.items() if getattr(config, key) != value]
    if faults:
        raise RecipeError(*faults)
    return config


_POSITIVE = ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size", "max_length")


_THE_LOSS = "the loss here is the mean negative log-likelihood over the supervised tokens of a step, on all devices together; leave it"
# Fields of upstream that would change what is promised, and would be read by nothing here
_FIXED = {
    "loss_type": ("nll", _THE_LOSS),
    "label_smoothing_factor": (0.0, _THE_LOSS),
    "average_tokens_across_devices": (True, _THE_LOSS),
    "dataloader_drop_last": (False, "the rows of the last batch would not be trained, or not be judged"),
}


def _positive(value: float | None) -> bool:
    return value is None or value > 0


class _Parser(HfArgumentParser):
    def error(self, message: str):
        raise ValueError(message.partition(": ")[2] or message)


def _typed(key: str, value: Any, faults: list[str]) -> Any:
    """A text as its field's type; a fault is noted, not raised."""
    if key == "packing":
        value = {"true": "auto", "false": "none"}.get(str(value).lower(), value)  # as upstream's users have it
    if not isinstance(value, str):
        return value
    try:
        if key in OWN_FIELDS:
            return _own_typed(key, value)
        return getattr(_Parser(RecipeConfig).parse_args([f"--{key}", value]), key)
    except (ValueError, ArgumentTypeError) as error:
        faults.append(f"{key}: {error}")
        return None


def _own_typed(key: str, value: str) -> Any:
    """A text as the type of a field of `Recipe`; what is no number and no truth value stays text."""
    if key == "held_out" and value.isdigit():
        return int(value)
    read = {"int": int, "float": float, "bool": string_to_bool}.get(OWN_TYPES[key].removesuffix(" | None"), str)
    return read(value)


def hush() -> None:
    """Silence what a person can do nothing about; called when work begins, never at import.

    No run announces itself to anybody (TRL's usage ping), transformers and PEFT keep their advice to errors, and bars are
    drawn in terminals only.
    """
    constants.HF_HUB_DISABLE_TELEMETRY = True
    transformers.logging.set_verbosity_error()
    for library in ("trl", "peft", "accelerate"):
        logging.getLogger(library).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=library)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
