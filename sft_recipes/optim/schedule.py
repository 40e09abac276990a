"""The learning rate (promise 6): a linear warm-up that begins above 0, then half a cosine down to a floor.

transformers' `cosine_with_min_lr` has learning rate 0 at the first step, which then changes nothing. Its
`cosine_warmup_with_min_lr` runs one step ahead after the warm-up, and climbs again behind the last step.
"""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

FLOOR = 0.1  # of the peak


def warmup_then_cosine(step: int, warmup_steps: int, total_steps: int, floor: float = FLOOR) -> float:
    """The learning rate of one optimiser step, as a multiple of the peak.

    Args:
        step: counted from 0.
        warmup_steps: how many the rate rises over; the last of them is at the peak. Behind `total_steps` it is not reached.
        total_steps: from this one on the rate is the floor.
        floor: the multiple that the cosine ends in.
    """
    if step >= total_steps:
        return floor
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def schedule(optimizer: Optimizer, warmup_steps: int, total_steps: int, floor: float = FLOOR) -> LambdaLR:
    """That curve for an optimiser; the learning rate of each of its groups is the group's peak.

    Its `state_dict` holds how far it is, not the curve: a resumed run gives the same steps again, or others.
    """
    curve = partial(warmup_then_cosine, warmup_steps=warmup_steps, total_steps=total_steps, floor=floor)
    return LambdaLR(optimizer, curve)
