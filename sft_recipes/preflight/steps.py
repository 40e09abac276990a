"""Optimiser steps of a run and what is in one, with its layout and without packing, all processes together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..recipe import Recipe
from .layouts import Layout, laid_together

FEW = 0.5  # of the steps without packing, below which what is left is worth a word


@dataclass(frozen=True)
class Amount:
    """What an epoch or a step goes through.

    Attributes:
        rows: separate or packed.
        tokens: positions, padding among them.
        supervised_tokens: that carry loss.
        conversations: of which something is trained.
    """

    rows: float
    tokens: float
    supervised_tokens: float
    conversations: float


@dataclass(frozen=True)
class Steps:
    """Optimiser steps.

    Attributes:
        per_epoch: steps.
        in_all: of the whole run.
        each: what a step goes through on average.
    """

    per_epoch: int
    in_all: int
    each: Amount

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `check --json`."""
        return {
            "per_epoch": self.per_epoch,
            "in_all": self.in_all,
            "rows_per_step": round(self.each.rows, 1),
            "conversations_per_step": round(self.each.conversations, 1),
            "tokens_per_step": round(self.each.tokens),
            "supervised_tokens_per_step": round(self.each.supervised_tokens),
        }


def counted(layout: Layout, rows: Sequence[dict[str, Any]], supervised: int, config: Any, share: float = 1.0) -> tuple[Steps, Steps]:
    """Steps with a layout, and without packing.

    Args:
        layout: of these rows, from `layouts.choose`.
        rows: separate ones, as `build_rows` gives them.
        supervised: their tokens that carry loss.
        config: the run's `RecipeConfig`.
        share: of the conversations that are here, above 0; the steps are those of all, were the others like them.
    """
    rest = supervised / share, len({row["source"] for row in rows}) / share
    epoch = Amount(len(rows) / share, layout.work["padded"].tokens / share, *rest)
    without = _steps(config, epoch, config.train_batch_size)
    if layout.packed is None:
        return without, without
    epoch = Amount(len(layout.packed.rows) / share, layout.packed.tokens / share, *rest)
    return _steps(config, epoch, _devices(config)), without


def _steps(config: Any, epoch: Amount, batch: int) -> Steps:
    per_epoch, in_all = _numbers(config, epoch.rows, batch, config.gradient_accumulation_steps)
    return Steps(per_epoch, in_all, Amount(*(value / per_epoch for value in asdict(epoch).values())))


def _numbers(config: Any, rows: float, batch: int, accumulation: int) -> tuple[int, int]:
    """Steps of an epoch and of the run, as transformers counts them: the last batch and the last step need not be full."""
    batches = math.ceil(math.ceil(round(rows, 6) / batch) / max(1, config.world_size))
    per_epoch = max(1, math.ceil(batches / accumulation))
    return per_epoch, config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * per_epoch)


def _devices(config: Any) -> int:
    """How many packed rows a process takes at a time: one for each device that it has."""
    return config.train_batch_size // config.per_device_train_batch_size


def warnings(recipe: Recipe, config: Any, rows: Sequence[dict[str, Any]], found: Steps, without: Steps) -> list[str]:
    """One line where packing leaves less than half of the run's steps, with both numbers and what keeps them.

    Args:
        recipe, config: resolved.
        rows: separate ones.
        found, without: what `counted` gave.
    """
    if found.in_all >= FEW * without.in_all:
        return []
    many, few = (f"{count.each.conversations:,.1f}" for count in (found, without))
    text = f"packed rows leave {found.in_all:,} of {without.in_all:,} optimiser steps, each of {many} conversations instead of {few}"
    return [f"{text}; {_ways(recipe, config, rows, found, without)}"]


def _ways(recipe: Recipe, config: Any, rows: Sequence[dict[str, Any]], found: Steps, without: Steps) -> str:
    """What keeps the steps: smaller rows, or fewer of them in a step where the longest conversation does not allow that."""
    scale, left, sized = without.each.rows * without.per_epoch / len(rows), found.each.rows * found.per_epoch, ""
    if recipe.row_tokens is not None:
        kept = laid_together(dataclasses.replace(recipe, row_tokens=None), config, rows, share=recipe.packing != "bfd")
        left = len(kept.rows) * scale
        in_all = _numbers(config, left, _devices(config), config.gradient_accumulation_steps)[1]
        if in_all >= FEW * without.in_all:
            return f"leave row_tokens out, or pass --row_tokens {kept.row_tokens}, for {in_all:,}"
        sized = "leave row_tokens out and "
    longest = max(len(row["input_ids"]) for row in rows)
    ways = [f"{sized}{fewer}"] if (fewer := _accumulated(config, left, without.in_all)) else []
    return f"a row has to hold the longest conversation, {longest:,} tokens: {' or '.join([*ways, 'take --packing none for all of them'])}"


def _accumulated(config: Any, rows: float, wanted: int) -> str:
    """The accumulation with which so many packed rows come nearest to the wanted steps; nothing where there is no other one."""
    others = {n: _numbers(config, rows, _devices(config), n)[1] for n in range(1, config.gradient_accumulation_steps)}
    if not others:
        return ""
    n = min(others, key=lambda n: (abs(others[n] - wanted), -n))
    return f"pass --gradient_accumulation_steps {n} for {others[n]:,}"
