"""Tokens to floating-point operations, hours and cost.

A model of N parameters takes 6 N operations a token: 2 on the way there and 4 on the way back, half of them for what the weights learn
(Kaplan et al. 2020, arXiv 2001.08361, section 2.1; Hoffmann et al. 2022, arXiv 2203.15556, appendix F). What a frozen weight would learn
is not computed, so an adapter takes 4 N. Operations that gradient checkpointing does again are no progress and are not counted;
utilisation (MFU, as in PaLM, arXiv 2204.02311, appendix B) is the share of a device's peak that is left of all that.
"""

from __future__ import annotations

from dataclasses import dataclass

MFU = 0.4


@dataclass(frozen=True)
class Bill:
    """What a run takes.

    Attributes:
        tokens: that go through the model, padding among them.
        flops: operations of the model.
        hours: by the clock; `None` where the device's speed is not known.
        cost: US dollars, all devices; `None` where no price is known.
    """

    tokens: float
    flops: float
    hours: float | None
    cost: float | None


def backward(share: float) -> float:
    """Operations of both ways for each on the way there.

    Args:
        share: of the parameters, which is trained, 0 to 1.
    """
    return 2.0 + share


def flops(parameters: float, tokens: float, share: float = 1.0) -> float:
    """Operations of training on so many tokens.

    Args:
        parameters: that a token passes.
        tokens: positions.
        share: of the parameters, which is trained.
    """
    return 2.0 * parameters * tokens * backward(share)


def bill(tokens: float, operations: float, devices: int, peak: float | None, mfu: float, price: float | None) -> Bill:
    """Hours and cost.

    Args:
        tokens, operations: of the run.
        devices: how many work on it.
        peak: of one of them, operations a second.
        mfu: the share of it that is used, above 0 to 1.
        price: US dollars an hour and device.
    """
    hours = None if peak is None else operations / (devices * peak * mfu) / 3600
    return Bill(tokens, operations, hours, None if hours is None or price is None else hours * devices * price)
