"""How long rows are, and what padding them costs: in the trainer's own batches, and were they packed.

Lengths are in tokens, one for each row.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import trainer_pt_utils

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
    """How a trainer makes batches of rows.

    Attributes:
        strategy: transformers' `train_sampling_strategy`.
        batch: rows in a batch.
        accumulation: batches in an optimiser step; transformers groups rows by length over a whole step.
        seed: of the order. Evaluation's order is exactly this one; training draws from a generator that the run has used
            before, so its own epochs differ from it in order, and in padding by a few per mille.
        multiple: rows are padded to a multiple of this many tokens.
    """

    strategy: str
    batch: int
    accumulation: int
    seed: int
    multiple: int

    @classmethod
    def training(cls, config: Any) -> Batching:
        """As a `RecipeConfig` has its trainer do it."""
        multiple, strategy = config.pad_to_multiple_of or 1, str(config.train_sampling_strategy)
        return cls(strategy, config.train_batch_size, config.gradient_accumulation_steps, config.seed, multiple)

    @classmethod
    def evaluation(cls, config: Any) -> Batching:
        """The same for the held-out rows."""
        grouped = config.train_sampling_strategy == "group_by_length"
        seed = config.data_seed if config.data_seed is not None else config.seed
        order = dict(strategy="group_by_length" if grouped else "sequential", batch=config.eval_batch_size, accumulation=1, seed=seed)
        return dataclasses.replace(cls.training(config), **order)

    def batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """One epoch: the rows' numbers, batch by batch."""
        step = self.batch * self.accumulation
        if self.strategy == "batch_rebalance":
            return list(trainer_pt_utils.BatchRebalanceSampler(list(lengths), step, 1, self.accumulation, drop_last=False))
        generator = torch.Generator().manual_seed(self.seed)
        order = list(range(len(lengths)))
        if self.strategy == "group_by_length":
            order = trainer_pt_utils.get_length_grouped_indices(list(lengths), step, generator=generator)
        elif self.strategy != "sequential":
            order = torch.randperm(len(lengths), generator=generator).tolist()
        return [order[i : i + self.batch] for i in range(0, len(order), self.batch)]

    def padding(self, lengths: Sequence[int]) -> float:
        """Share of positions in these batches that are padding, 0 to 1."""
        batches = [[lengths[i] for i in rows] for rows in self.batches(lengths)]
        positions = sum(len(rows) * -(-max(rows) // self.multiple) * self.multiple for rows in batches)
        return 1 - sum(map(sum, batches)) / positions if positions else 0.0


def pack(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Rows laid together into rows of at most `size` tokens, best fit decreasing.

    Args:
        lengths: each at least 1 and at most `size`.

    Returns:
        the lengths in each packed row.
    """
    packed: list[list[int]] = []
    row: list[int]
    spaces: list[int] = []  # the different free spaces, ascending
    free: dict[int, list[list[int]]] = {}  # packed rows by their free space
    for length in sorted(lengths, reverse=True):
        at = bisect.bisect_left(spaces, length)
        if at == len(spaces):
            space, row = size, []
            packed.append(row)
        else:
            space = spaces[at]
            row = free[space].pop()
            if not free[space]:
                del free[space], spaces[at]
        row.append(length)
        if space - length not in free:
            free[space - length] = []
            bisect.insort(spaces, space - length)
        free[space - length].append(row)
    return packed


def packed_padding(lengths: Sequence[int], max_length: int | None) -> float:
    """Share of positions left empty were rows packed into `max_length` tokens (`None`: the longest row), 0 to 1."""
    if not lengths:
        return 0.0
    size = max_length or max(lengths)
    return 1 - sum(lengths) / (len(pack(lengths, size)) * size)


def padding_warnings(lengths: Sequence[int], config: Any) -> list[str]:
    """One line where more than a fifth of the training positions is padding: what packing would leave, and what helps today."""
    now = Batching.training(config)
    share = now.padding(lengths)
    if share <= MUCH:
        return []
    halves, steps = now.batch // 2, now.accumulation * 2
    levers = {
        "--train_sampling_strategy group_by_length": dataclasses.replace(now, strategy="group_by_length"),
        f"--per_device_train_batch_size {halves} --gradient_accumulation_steps {steps}": dataclasses.replace(
            now, batch=halves, accumulation=steps
        ),
    }
    left = {words: lever.padding(lengths) for words, lever in levers.items() if lever != now and lever.batch}
    words = min(left, key=left.__getitem__, default="")
    packed = packed_padding(lengths, config.max_length)
    text = (
        f"{share:.0%} of the positions in training batches are padding; packed rows would leave {packed:.0%}, but cannot be made here yet"
    )
    return [f"{text}; {words} would leave {left[words]:.0%}" if words and left[words] < share - 0.02 else text]
