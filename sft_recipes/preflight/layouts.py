"""How training rows are laid out: the cheapest way that is exact for the model, why, and what each way would cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..attention.sharing import obstacle
from ..recipe import Recipe, RecipeError
from ..rows import Packed, pack
from .cost import Cost, Work, cost
from .lengths import Batching

COLUMNS = {"none": "padded", "bfd": "packed", "tree": "tree"}  # what each `Recipe.packing` is called among the counts


@dataclass(frozen=True)
class Abilities:
    """What a model makes of packed rows.

    Attributes:
        obstacle: why it cannot read them, from `attention.sharing`; empty where it can.
        name: its class and the kinds of its layers.
        kernel: what computes its attention over packed rows, in words.
        cost: `None` where it cannot read them.
    """

    obstacle: str
    name: str = ""
    kernel: str = ""
    cost: Cost | None = None


@dataclass
class Layout:
    """The layout of the training rows.

    Attributes:
        name: `tree`, `bfd` or `none`, as `Recipe.packing` has them.
        reason: why it is this one, in words.
        packed: the packed rows; `None` where each conversation has a row of its own.
        kernel: what computes the attention, in words.
        limit: tokens without sharing over those with it, were no tree split; `None` where none can be made.
        experts: whether the costs count all experts of a layer.
        work: what the layouts that are exact for the model cost, `padded`, `packed` and `tree`; none where the model is not known.
    """

    name: str
    reason: str
    packed: Packed | None = None
    kernel: str = "the model's own attention"
    limit: float | None = None
    experts: bool = False
    work: dict[str, Work] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `recipe.json`."""
        rows = {} if self.packed is None else {"rows": len(self.packed.rows), "row_tokens": self.packed.row_tokens}
        return {"name": self.name, "reason": self.reason, "kernel": self.kernel, **rows}

    @property
    def chosen(self) -> str:
        """Its name among `work`."""
        return COLUMNS[self.name]

    def counts(self, supervised: int) -> dict[str, Any]:
        """Plain data for `check --json`: tokens of every layout, and what their cost predicts.

        Args:
            supervised: tokens that carry loss.
        """
        flops = {name: work.flops for name, work in self.work.items() if work.flops}
        speed_up = {f"speed_up_over_{name}": round(flops[name] / flops[self.chosen], 3) for name in ("padded", "packed") if name in flops}
        empty = {} if self.packed is None else {"empty": round(self.packed.empty, 4)}
        return {
            **self.as_dict(),
            "chosen": self.chosen,
            **empty,
            "tokens": {name: work.tokens for name, work in self.work.items()},
            "supervised_tokens": supervised,
            "limit": None if self.limit is None else round(self.limit, 3),
            "predicted": {"flops": flops, **speed_up, "all_experts_counted": self.experts} if flops else None,
        }


def abilities(model: Any, adapter: Any, config: Any) -> Abilities:
    """What a model makes of packed rows on the device of a run.

    Args:
        model: without adapter; may be on the meta device.
        adapter: the `PeftConfig` that is put on it, or `None`.
        config: the run's `RecipeConfig`.
    """
    hindered = obstacle(model, adapter) or ("padding_free lays each batch in one row already" if config.padding_free else "")
    if hindered:
        return Abilities(hindered)
    found, decoder = cost(model), model.get_decoder()
    kinds = [kind for kind, some in (("sliding", set(found.widths) - {None}), ("full", None in found.widths)) if some]
    name = f"{type(decoder).__name__}, {' and '.join(kinds)} attention"
    return Abilities("", name, _kernel(decoder, config.device.type), found)


def _kernel(decoder: Any, device: str) -> str:
    """The choice of `attention.interface`, in words."""
    if device == "cuda":
        return "FlexAttention with a block mask"
    uneven = any(getattr(m, "qk_head_dim", None) != getattr(m, "v_head_dim", None) for m in decoder.modules())
    if device == "cpu" and not uneven and not getattr(decoder.config, "attn_logit_softcapping", None):
        return "flash attention over the visible rectangles"
    return "the model's own attention with a dense mask"


def choose(recipe: Recipe, config: Any, rows: Sequence[dict[str, Any]], supervised: int, able: Abilities) -> Layout:
    """Lay out the training rows as the recipe asks, and count what the other ways would cost.

    Args:
        recipe, config: resolved.
        rows: separate ones, as `build_rows` gives them.
        supervised: their tokens that carry loss.
        able: of the recipe's model.

    Raises:
        RecipeError: the recipe asks for packed rows and they cannot be, or a conversation does not fit into `row_tokens`.
    """
    if recipe.packing in ("tree", "bfd") and able.obstacle:
        raise RecipeError(f"packing is '{recipe.packing}', but {able.obstacle}; leave it out, or take --packing none")
    if able.cost is None:
        return Layout("none", able.obstacle, work=_separate(config, rows, supervised, None))
    tree = laid_together(recipe, config, rows, share=True)
    work = {**_separate(config, rows, supervised, able.cost), "tree": able.cost.tree(tree.rows, supervised)}
    facts: dict[str, Any] = {"limit": tree.separate_tokens / tree.least_tokens, "experts": able.cost.experts, "work": work}
    if recipe.packing == "none":
        return Layout("none", "asked for", **facts)
    if recipe.packing == "bfd":
        return Layout("bfd", "asked for", laid_together(recipe, config, rows, share=False), able.kernel, **facts)
    reason = "asked for" if recipe.packing == "tree" else f"the model takes it ({able.name})"
    return Layout("tree", reason, tree, able.kernel, **facts)


def _separate(config: Any, rows: Sequence[dict[str, Any]], supervised: int, cost: Cost | None) -> dict[str, Work]:
    """What separate rows cost, padded and end to end; tokens alone where the cost is not known."""
    lengths = [len(row["input_ids"]) for row in rows]
    found = {"padded": Batching.training(config).padded(lengths), "packed": lengths}
    return {name: cost.separate(some, supervised) if cost else Work(sum(some), 0) for name, some in found.items()}


def laid_together(recipe: Recipe, config: Any, rows: Sequence[dict[str, Any]], share: bool) -> Packed:
    """Packed rows of the size that the recipe names; without it, as many as there would be micro-batches of separate rows.

    Raises:
        RecipeError: a conversation does not fit into `row_tokens`.
    """
    seed = config.seed if config.data_seed is None else config.data_seed
    if recipe.row_tokens is not None and recipe.packing != "none":
        return pack(rows, share, row_tokens=recipe.row_tokens, seed=seed)
    return pack(rows, share, count=-(-len(rows) // config.per_device_train_batch_size), seed=seed)
