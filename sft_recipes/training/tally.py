"""Sums over optimiser steps and processes, for exact means in the logs and in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Tally:
    """Named sums in float64, kept on the device where they arise: nothing waits for it until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}

    def add(self, **values: Tensor | float) -> None:
        """Add a number, or all of a tensor, to each named sum."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + (value.detach().sum(dtype=torch.float64) if isinstance(value, Tensor) else value)

    def taken(self, reduce: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """The sums over all processes; begins anew.

        Args:
            reduce: sums a tensor over the processes, which call this together and have the same names.
            device: where it can do so.
        """
        found = self.everywhere(reduce, device)
        self.sums = {}
        return found

    def everywhere(self, reduce: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """The same, and the sums go on."""
        names = sorted(self.sums)
        mine = torch.stack([torch.as_tensor(self.sums[name], dtype=torch.float64, device=device) for name in names]) if names else None
        return {} if mine is None else dict(zip(names, reduce(mine).tolist(), strict=True))
