"""In which order the rows of a window are trained: drawn from seed, epoch and window, so that it is the same again."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .grouping import LengthGrouped, Shuffled, drawn_from, grouped

SAMPLING = ("group_by_length", "random", "sequential")  # of transformers' `train_sampling_strategy`


def ordered(lengths: Sequence[int], epoch: int, window: int, begun: int, step: int, seed: int, sampling: str, packed: bool) -> list[int]:
    """The order of a window's rows. The first window's is that of a dataset which holds nothing else.

    Args:
        lengths: tokens of each row.
        epoch, window: counted from 0.
        begun: rows that the optimiser step has already when the window begins.
        step: rows of an optimiser step, all processes together.
        seed: of the run's data.
        sampling: one of `SAMPLING`.
        packed: whether the rows are packed, which then need no grouping.

    Returns:
        the indices of `lengths`, each once. Grouped, the first of them fill the step that was begun, with rows of any length.
    """
    if sampling == "sequential":
        return list(range(len(lengths)))
    own = drawn_from(seed, window) if window else seed
    shuffled: Shuffled = Shuffled(len(lengths), own)
    if sampling == "group_by_length" and not packed and not begun:
        shuffled = LengthGrouped(lengths, step, own)
    shuffled.set_epoch(epoch)
    order = list(shuffled)
    if sampling != "group_by_length" or packed or not begun:
        return order
    first, rest = order[: step - begun], sorted(order[step - begun :])
    generator = torch.Generator().manual_seed(drawn_from(own, epoch))
    return first + [rest[i] for i in grouped([lengths[row] for row in rest], step, generator)]
