"""Supervised fine-tuning on TRL and PEFT that trains exactly what the model will generate when served.

    from sft_recipes import build_trainer

    trainer = build_trainer("gemma-tools")
    trainer.train()

The names below load what they need when they are first used: importing this package loads neither torch nor datasets.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import scores as scores
    from .recipe import TINY, Recipe, RecipeError, Source, SupervisionError, load_recipe
    from .trainer import RecipeConfig, RecipeTrainer, build_trainer
    from .turns import Turn, supervise

_HOMES = {
    "recipe": ("TINY", "Recipe", "RecipeError", "Source", "SupervisionError", "load_recipe"),
    "turns": ("Turn", "supervise"),
    "trainer": ("RecipeConfig", "RecipeTrainer", "build_trainer"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "TINY",
    "Recipe",
    "RecipeConfig",
    "RecipeError",
    "RecipeTrainer",
    "Source",
    "SupervisionError",
    "Turn",
    "build_trainer",
    "load_recipe",
    "scores",
    "supervise",
]


def __getattr__(name: str):
    if name == "scores":
        return importlib.import_module(".scores", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
