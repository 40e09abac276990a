"""How training rows are laid out: the cheapest way that is exact for the model, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..recipe import Recipe, RecipeError
from ..rows import Packed, pack


@dataclass
class Layout:
    """The layout of the training rows.

    Attributes:
        name: `tree`, `bfd` or `none`, as `Recipe.packing` has them.
        reason: why it is this one, in words.
        packed: the packed rows; `None` where each conversation has a row of its own.
    """

    name: str
    reason: str
    packed: Packed | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `recipe.json`."""
        rows = {} if self.packed is None else {"rows": len(self.packed.rows), "row_tokens": self.packed.row_tokens}
        return {"name": self.name, "reason": self.reason, **rows}


def choose(recipe: Recipe, config: Any, rows: Sequence[dict[str, Any]], obstacle: str) -> Layout:
    """Lay out the training rows as the recipe asks.

    Args:
        recipe, config: resolved.
        rows: separate ones, as `build_rows` gives them.
        obstacle: why the model cannot read packed rows, from `attention.sharing`; empty where it can.

    Raises:
        RecipeError: the recipe asks for packed rows and they cannot be, or a conversation does not fit into `row_tokens`.
    """
    obstacle = obstacle or ("padding_free lays each batch in one row already" if config.padding_free else "")
    if recipe.packing in ("tree", "bfd") and obstacle:
        raise RecipeError(f"packing is '{recipe.packing}', but {obstacle}; leave it out, or take --packing none")
    if recipe.packing == "none" or obstacle:
        return Layout("none", obstacle or "asked for")
    name = "bfd" if recipe.packing == "bfd" else "tree"
    size: dict[str, Any] = {"row_tokens": recipe.row_tokens}
    if recipe.row_tokens is None:
        size = {"count": -(-len(rows) // config.per_device_train_batch_size)}
    packed = pack(rows, share=name == "tree", seed=config.seed if config.data_seed is None else config.data_seed, **size)
    return Layout(name, "asked for" if recipe.packing != "auto" else "the model takes it, and nothing is computed twice", packed)
