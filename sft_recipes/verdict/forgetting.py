"""What a model lost of what it knew: its loss and its accuracy on `retain` data, before, while and after it learned something else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .best import shown

LOSS, ACCURACY = "retain_loss", "retain_accuracy"
Measured = Mapping[str, float]  # `retain_loss` in nats per token, `retain_accuracy` as a share of the tokens


def rise(before: Measured, now: Measured) -> float:
    """How much the loss on what is to be kept rose, in nats per token; what fell is below 0."""
    return now[LOSS] - before[LOSS]


def forgetting(
    before: Measured, after: Measured, max_rise: float, rows: int, tokens: int, end: Measured | None = None, mix: float | None = 0.0
) -> dict[str, Any]:
    """The record, as `metrics.json` has it under `retain`.

    Args:
        before, after: measured before training, and of the model that is deployed.
        max_rise: of the loss, in nats per token, that the recipe puts up with.
        rows, tokens: what it was measured on; tokens that carry loss.
        end: of the model after the last step, where another one is deployed.
        mix: the share that was replayed; `None` of a stream, which brings what it replays.
    """
    rose = rise(before, after)
    said = f"on the data to be kept, loss {shown(before[LOSS])} to {shown(after[LOSS])}"
    said += f", accuracy {before[ACCURACY]:.1%} to {after[ACCURACY]:.1%}"
    if rose > max_rise:
        said += f": a rise above max_rise ({max_rise:g}); {_ways(mix)}"
    ends = {"end": _plain(end)} if end else {}
    found = {"before": _plain(before), "after": _plain(after), **ends, "rows": rows, "tokens": tokens}
    return {**found, "max_rise": max_rise, "rise": round(rose, 6), "said": said}


def _ways(mix: float | None) -> str:
    if mix is None:
        return "put some of them into the stream"
    return "a larger --mix replays more" if mix else "--mix 0.2 replays some"


def too_much(step: int, rose: float, max_rise: float) -> str:
    """The one line of an evaluation that is beyond the bound."""
    return f"step {step:,}: the loss on the data to be kept is {rose:.3f} above what it was before training (max_rise {max_rise:g})"


def _plain(measured: Measured) -> dict[str, float]:
    return {"loss": measured[LOSS], "accuracy": measured[ACCURACY]}
