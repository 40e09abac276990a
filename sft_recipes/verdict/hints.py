"""What a finished run should look at, where its training loss stayed higher than that of a run which learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from .best import shown
from .curves import trained

LAST = 0.1  # the end of a run: this share of what was logged, so that one hard step does not speak for it


def loss_hint(history: Sequence[dict[str, Any]], loss_above: float | None, recipe: str) -> str | None:
    """One sentence where the training loss ended above what the recipe expects, or `None`.

    A loss that barely falls is seldom the learning rate's doing: more often the loss is on other tokens than those to be learned, or
    the data are not what they seem. Both can be seen.

    Args:
        history: transformers' `log_history`.
        loss_above: the recipe's `loss_hint`, in nats per supervised token; `None`: it has no expectation.
        recipe: its name as typed, for the command.
    """
    losses = [loss for _, loss in sorted(trained(history).items()) if math.isfinite(loss)]
    if loss_above is None or not losses:
        return None
    end = losses[-max(1, round(len(losses) * LAST)) :]
    if not fmean(end) > loss_above:
        return None
    return (
        f"training loss ended at {shown(fmean(end))}, where a run of this recipe that learns ends below {loss_above:g}: look at the mask "
        f"with `make show RECIPE={recipe}`; each reply and its stop token should be green, and nothing else"
    )
