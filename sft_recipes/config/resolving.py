"""A recipe's name, its scale, and what a person changed, to a recipe as it will run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ..lineage import begin
from ..recipe import Recipe, RecipeError, load_recipe, unknown_name
from .configuration import RecipeConfig, configured, hush, wanted
from .kinds import refuse_unreadable, wrong
from .typed import CONFIG_FIELDS, OWN_FIELDS, typed

SCALES = ("auto", "full", "tiny")
CHOICES = {
    "dtype": ("bfloat16", "float16", "float32"),
    "mask": ("completion", "everything"),
    "loss_per": ("token", "example"),
    "overlong": ("trim", "drop", "refuse"),
    "packing": ("auto", "tree", "bfd", "none"),
    "bad_step": ("stop", "skip"),
    "forgetting": ("warn", "stop"),
    "base": ("trained", "original", "measured"),
}
FOLDER = re.compile(r"[^\s._/\\][^/\\\n]*")  # what an arm may be called
RUN_FILES = set("adapter ablation checkpoints compared history merged metrics recipe report rows samples tensorboard wandb".split())


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
    refuse_unreadable(name, trainer_class)
    if scale not in SCALES:
        raise RecipeError(unknown_name("scale", scale, SCALES))
    asked, scale = scale, scale if scale != "auto" else "full" if torch.cuda.is_available() or not trainer_class.recipe.tiny else "tiny"
    remark = f"No CUDA device here, so {name} runs at tiny scale: an embedded model and data, all else is real."
    base: Recipe = trainer_class.recipe.at(scale)
    faults = _ablation_faults(name, base, arm)
    base = _differing(base, arm)
    faults += _unknown_fields(base, overrides)
    given = {key: typed(key, value, faults) for key, value in overrides.items()} if not faults else {}
    faults += wrong({key: value for key, value in given.items() if value is not None})
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
    fields = wanted(name, recipe, {k: v for k, v in given.items() if k in CONFIG_FIELDS}, arm)
    faults, started, origin, config = [], recipe, None, None
    try:
        started, origin = begin(recipe, given, fields["output_dir"])
    except RecipeError as error:
        faults += error.faults
    faults += _faults(started, recipe.from_scratch)
    try:
        config = configured(fields)
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
    if not 0 <= recipe.mix < 1:
        found.append(f"mix is {recipe.mix:g}: it is a share, from 0 to below 1")
    if recipe.mix > 0 and recipe.retain is None:
        found.append(f"mix is {recipe.mix:g}, and there is nothing to replay: name it with `retain`")
    if recipe.patience is not None and recipe.patience < 1:
        found.append(f"patience is {recipe.patience}: it is a number of evaluations, 1 or more")
    ratio = recipe.loraplus_lr_ratio
    if ratio is not None and (ratio <= 0 or recipe.adapter is None):
        found.append(f"loraplus_lr_ratio is {ratio:g}: it takes an adapter, and a number above 0 (the paper's is 16)")
    return found + _unbounded(recipe)


def _unbounded(recipe: Recipe) -> list[str]:
    """Bounds that nothing would be held to: of nats, NaN among them, and of tokens."""
    nats = {"max_kl": recipe.max_kl, "max_rise": recipe.max_rise}
    found = [f"{name} is not a number: it is a bound in nats" for name, value in nats.items() if math.isnan(value)]
    if recipe.max_new_tokens < 1:
        found.append(f"max_new_tokens is {recipe.max_new_tokens}: a reply has at least one token")
    return found
