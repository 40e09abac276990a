"""How long rows are, and what padding costs them in the trainer's own batches, one conversation a row.

Lengths are in tokens, one for each row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import trainer_pt_utils

from ..rows.grouping import grouped

POINTS = (5, 50, 95, 99)
MUCH = 0.2  # share of pad positions above which it is worth a word


def percentiles(lengths: Sequence[int]) -> dict[str, int]:
    """`p5`, `p50`, `p95`, `p99` and `max`, in tokens, interpolated between neighbours; empty for no lengths."""
    if not lengths:
        return {}
    cuts = np.percentile(lengths, POINTS)
    return {f"p{point}": round(cut) for point, cut in zip(POINTS, cuts, strict=True)} | {"max": max(lengths)}


@dataclass(frozen=True)
class Batching:
    """How a trainer makes batches of separate rows.

    Attributes:
        strategy: transformers' `train_sampling_strategy`, of which `group_by_length` is ours; `upstream` is transformers' own.
        batch: rows in a batch.
        accumulation: batches in an optimiser step.
        seed: of the order, which is exactly that of the first epoch where rows are grouped by length or evaluated; where they are
            drawn at random the run's own order is another one, and its padding differs by a few per mille.
        multiple: rows are padded to a multiple of this many tokens; 0 where a batch is laid in one row (`padding_free`).
        processes: that take a batch each at a time.
    """

    strategy: str
    batch: int
    accumulation: int
    seed: int
    multiple: int
    processes: int = 1

    @classmethod
    def training(cls, config: Any) -> Batching:
        """As a `RecipeConfig` has its trainer do it."""
        strategy, multiple = str(config.train_sampling_strategy), 0 if config.padding_free else config.pad_to_multiple_of or 1
        seed = config.seed if config.data_seed is None else config.data_seed
        return cls(strategy, config.train_batch_size, config.gradient_accumulation_steps, seed, multiple, config.world_size)

    @classmethod
    def evaluation(cls, config: Any) -> Batching:
        """The same for the held-out rows."""
        strategy = "upstream" if config.train_sampling_strategy == "group_by_length" else "sequential"
        order = dict(strategy=strategy, batch=config.eval_batch_size, accumulation=1, processes=1)
        return dataclasses.replace(cls.training(config), **order)

    def batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """One epoch: the rows' numbers, batch by batch, of all processes."""
        if self.strategy == "batch_rebalance":
            return self._rebalanced(list(lengths))
        generator = torch.Generator().manual_seed(self.seed % 2**64)
        order = list(range(len(lengths)))
        if self.strategy == "group_by_length":
            order = grouped(lengths, self.batch * self.processes * self.accumulation, generator)
        elif self.strategy == "upstream":
            order = trainer_pt_utils.get_length_grouped_indices(list(lengths), self.batch, generator=generator)
        elif self.strategy != "sequential":
            order = torch.randperm(len(lengths), generator=generator).tolist()
        return [order[i : i + self.batch] for i in range(0, len(order), self.batch)]

    def _rebalanced(self, lengths: list[int]) -> list[list[int]]:
        step = self.batch * self.accumulation * self.processes
        sampler = trainer_pt_utils.BatchRebalanceSampler
        ranks = (sampler(lengths, step, self.processes, self.accumulation, rank=r, drop_last=False) for r in range(self.processes))
        return [rows for rank in ranks for rows in rank]

    def padded(self, lengths: Sequence[int]) -> list[int]:
        """Positions that each row takes in its batch, in the order of the batches."""
        if not self.multiple:
            return list(lengths)
        batches = ([lengths[i] for i in rows] for rows in self.batches(lengths))
        return [-(-max(rows) // self.multiple) * self.multiple for rows in batches for _ in rows]

    def padding(self, lengths: Sequence[int]) -> float:
        """Share of positions in these batches that are padding, 0 to 1."""
        positions = sum(self.padded(lengths))
        return 1 - sum(lengths) / positions if positions else 0.0


def padding_warnings(lengths: Sequence[int], config: Any, obstacle: str) -> list[str]:
    """One line where conversations have rows of their own and more than a fifth of the positions in training is padding.

    Args:
        obstacle: why rows cannot be packed; empty where they can, and were not asked to be.
    """
    now = Batching.training(config)
    share = now.padding(lengths)
    if share <= MUCH:
        return []
    left = {words: lever.padding(lengths) for words, lever in _levers(now).items()}
    words = min(left, key=left.__getitem__, default="")
    packed = f"packed rows would leave none, but {obstacle}" if obstacle else "--packing auto leaves none"
    text = f"{share:.0%} of the positions in training batches are padding; {packed}"
    return [f"{text}; {words} would leave {left[words]:.0%}" if words and left[words] < share - 0.02 else text]


def _levers(now: Batching) -> dict[str, Batching]:
    """Other ways to make batches, and the words that choose them."""
    halves, steps = now.batch // 2, now.accumulation * 2
    smaller = f"--per_device_train_batch_size {halves} --gradient_accumulation_steps {steps}"
    found = {smaller: dataclasses.replace(now, batch=halves, accumulation=steps)} if halves else {}
    if now.strategy != "group_by_length":
        found["--train_sampling_strategy group_by_length"] = dataclasses.replace(now, strategy="group_by_length")
    return found
