"""Whether what a recipe's module says has the form that is read: a person's own code, so every field may hold anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..recipe import Recipe, RecipeError, Source

NUMBER = (int, float)
KINDS: dict[str, tuple[type, ...]] = {"str": (str,), "bool": (bool,), "int": (int,), "float": NUMBER}
DATA = "a path, a Source, a function, or a tuple of them"


def refuse_unreadable(name: str, trainer_class: Any) -> None:
    """Hold a recipe's class against the types that `Recipe` declares.

    Args:
        name: the recipe's.
        trainer_class: what its module holds.

    Raises:
        RecipeError: it is no `RecipeTrainer` with a `Recipe`, a hook cannot be called, or fields hold values of another type; all together.
    """
    recipe, where = trainer_class.recipe, f"recipe '{name}'"
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"{where}: `recipe` is {type(recipe).__name__}, expected Recipe(...)")
    faults = [f"{hook} is no function" for hook in ("conversation", "score") if not callable(getattr(trainer_class, hook, None))]
    if not hasattr(trainer_class, "train"):
        faults = [f"class {trainer_class.__name__} is no RecipeTrainer; write class {trainer_class.__name__}(RecipeTrainer)"]
    faults += wrong({field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)})
    if not faults:
        faults += [f"`tiny`: {fault}" for fault in wrong(recipe.tiny)]
        faults += [f"arm '{arm}': {fault}" for arm, fields in recipe.ablation.items() for fault in wrong(fields)]
    if faults:
        raise RecipeError(*(f"{where}: {fault}" for fault in faults))


def wrong(fields: Mapping[str, Any]) -> list[str]:
    """The fields of `Recipe` among these that hold a value of another type than it declares."""
    declared = {field.name: str(field.type) for field in dataclasses.fields(Recipe)}
    return [fault for name, value in fields.items() if name in declared and (fault := _wrong(name, value, declared[name]))]


def _wrong(name: str, value: Any, declared: str) -> str:
    kind, optional = declared.removesuffix(" | None"), declared.endswith(" | None")
    if (optional and value is None) or kind == "Any":
        return ""
    if kind in ("Data", "int | Data"):
        fine = _is_data(value) or (kind != "Data" and isinstance(value, int) and not isinstance(value, bool))
        return "" if fine else f"{name} is {_shown(value)}, expected {DATA}"
    if kind.startswith("Mapping"):
        inside = all(isinstance(v, Mapping) for v in value.values()) if name == "ablation" and isinstance(value, Mapping) else True
        fine = isinstance(value, Mapping) and inside and all(isinstance(key, str) for key in value)
        return "" if fine else f"{name} is {_shown(value)}, expected a mapping of names to {'fields' if name == 'ablation' else 'values'}"
    fine = isinstance(value, KINDS[kind]) and (kind == "bool" or not isinstance(value, bool))
    return "" if fine else f"{name} is {_shown(value)}, expected {kind}"


def _is_data(value: Any) -> bool:
    several = value if isinstance(value, tuple) else (value,)
    return bool(several) and all(isinstance(one, (str, Source)) or (callable(one) and not isinstance(one, type)) for one in several)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
