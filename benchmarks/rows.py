"""`agent`, `reasoning`, `answers`, `chat`: optimiser steps over packed rows that share their beginnings, beside stock TRL's.

Both sides train the same Llama of 6 M parameters, whole, in float32 with AdamW on the CPU, on the same separate rows of the same
conversations, with as many supervised tokens a step; the first step of a run is not timed. TRL pads rows of similar length, or
packs them, whichever is faster in the first round. Order alternated; the median of three rounds. Before them, one step over the
same rows must give both the same loss.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from sft_recipes.rows import pack

from .meter import Cost, cost
from .sides import Rows, Side, ours, packed, padded
from .workloads import WORKLOADS, rows_of

ROUNDS, THREADS = 3, 2
CLOSE = 1e-4  # relative difference of two losses in float32


class Result(NamedTuple):
    """One workload's outcome.

    Attributes:
        layout: TRL's faster one, `padded` or `packed`.
        ours, trl: supervised tokens per second, medians.
        memory: bytes at the peak above those before the first step, ours and TRL's; `None` where it cannot be seen.
        limit: tokens without sharing for each token with it, in our rows.
        loss: of one step over the same rows, ours and TRL's, in nats.
    """

    name: str
    layout: str
    ours: float
    trl: float
    memory: tuple[int | None, int | None]
    limit: float
    loss: tuple[float, float]
    bar: float

    @property
    def ratio(self) -> float:
        """Ours to TRL's."""
        return self.ours / self.trl

    def line(self) -> str:
        """The name first, the ratio last."""
        held = " / ".join("?" if size is None else f"{size / 2**20:,.0f}" for size in self.memory)
        return (
            f"{self.name:9}  ours {self.ours:,.0f} supervised tokens/s  TRL {self.trl:,.0f} ({self.layout})  memory {held} MiB  "
            f"limit {self.limit:.2f}, {self.ratio / self.limit:.0%} of it  bar {self.bar:.1f}  {self.ratio:.2f}x"
        )


def compare(name: str, scale: float = 1.0, rounds: int = ROUNDS) -> Result:
    """Measure one workload.

    Args:
        name: of `WORKLOADS`.
        scale: of the conversations in a step; a test takes few.
        rounds: of which the median counts.

    Raises:
        ArithmeticError: the two sides do not have the same loss.
    """
    torch.set_num_threads(THREADS)
    workload = WORKLOADS[name]
    groups = max(1, round(workload.step * scale))
    steps = 1 + workload.timed
    rows, tokenizer = rows_of(name, groups * steps)
    sides: dict[str, Side] = {side.__name__: partial(side, workload) for side in (ours, padded, packed)}
    losses = _losses(sides, rows_of(name, max(1, groups // 8))[0], tokenizer)  # also a warm-up
    costs = _rounds({side: partial(_run, make, rows, steps, tokenizer) for side, make in sides.items()}, rounds)
    layout = next(side for side in costs if side != "ours")
    speeds = {side: statistics.median(each.supervised / each.seconds for each in found) for side, found in costs.items()}
    shared = pack(rows, share=True, count=workload.packed * steps)
    memory, loss = (_most(costs["ours"]), _most(costs[layout])), (losses["ours"], losses[layout])
    return Result(name, layout, speeds["ours"], speeds[layout], memory, shared.separate_tokens / shared.tokens, loss, workload.bar)


def _losses(sides: dict[str, Side], rows: Rows, tokenizer: Any) -> dict[str, float]:
    """Of one step over the rows, by side; all within `CLOSE`."""
    found = {side: _run(make, rows, 1, tokenizer).loss for side, make in sides.items()}
    if any(abs(loss - found["ours"]) > CLOSE * found["ours"] for loss in found.values()):
        raise ArithmeticError(f"the loss of one step over the same rows is not the same: {found}")
    return found


def _rounds(sides: dict[str, Callable[[], Cost]], rounds: int) -> dict[str, list[Cost]]:
    """The costs of each round by side; of TRL's layouts only the faster one goes on after the first."""
    costs: dict[str, list[Cost]] = {side: [work()] for side, work in sides.items()}
    slower = max(("padded", "packed"), key=lambda side: costs[side][0].seconds)
    del costs[slower]
    for number in range(1, rounds):
        for side in sorted(costs, reverse=bool(number % 2)):
            costs[side].append(sides[side]())
    return costs


def _most(costs: list[Cost]) -> int | None:
    sizes = [each.memory for each in costs if each.memory is not None]
    return max(sizes, default=None)


def _run(make: Side, rows: Rows, steps: int, tokenizer: Any) -> Cost:
    """One epoch over the rows, by a trainer of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return cost(make(rows, steps, tokenizer, folder))
