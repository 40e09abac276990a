"""The loss over supervised tokens (promise 5): of each token, of a step, and an estimate over everything.

On CUDA TRL's fused head scores in tiles the positions that carry loss. Off CUDA it scores every position and masks
afterwards, five times the work where a fifth of the tokens carry loss; there the language-model head is only shown the
positions that count. The two are equal, and a test holds them to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..attention import laid_out
from ..rows import IGNORED

OURS = ("labels", "loss_weights", "source", "subtree_end", "owner")  # of a batch, what the model is not shown
CONTEXT = 32  # positions of a micro-batch that carry no loss, of which the loss is logged


def supervised(inputs: dict[str, Any]) -> Tensor:
    """Which predictions carry loss: bools `(batch, length - 1)`, after the causal shift of `labels`."""
    return inputs["labels"][:, 1:] != IGNORED


def loss_weights(inputs: dict[str, Any]) -> Tensor:
    """How much each prediction counts: `(batch, length - 1)` in float32, 0 where nothing is learned, 1 where rows say nothing."""
    if "loss_weights" in inputs:
        return inputs["loss_weights"][:, 1:]
    return supervised(inputs).float()


def real(inputs: dict[str, Any]) -> Tensor:
    """Which positions hold a token and not padding: bools `(batch, length)`."""
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


def context(inputs: dict[str, Any]) -> Tensor:
    """Which predictions carry no loss though there is a token to predict, like `supervised`; none across packed documents or branches."""
    found = real(inputs)[:, 1:] & ~supervised(inputs)
    if "position_ids" not in inputs:
        return found
    position = inputs["position_ids"]
    found = found & (position[:, 1:] == position[:, :-1] + 1)
    if "subtree_end" not in inputs:
        return found
    return found & (torch.arange(1, position.shape[1], device=position.device) < inputs["subtree_end"][:, :-1])


def per_conversation(values: Tensor, inputs: dict[str, Any]) -> Tensor:
    """Sums of `(batch, length - 1)` values over each of the batch's conversations, `(conversations,)`, packed in rows or not."""
    count = len(inputs["source"])
    if count == len(values):
        return values.sum(1)
    begins = inputs["position_ids"] == 0  # also each token that fills up a packed row, in which nothing counts
    conversation = (begins.flatten().cumsum(0) - 1).clamp(max=count - 1).view_as(begins)[:, 1:]
    return values.new_zeros(count).scatter_add(0, conversation.flatten(), values.flatten())


def spread(chosen: Tensor, count: int = CONTEXT) -> Tensor:
    """At most `count` of the true positions of a mask, evenly spread over them; like the mask. Nothing waits for the device."""
    number = chosen.flatten().cumsum(0) - 1  # of each true position among them
    step = ((number[-1] + count) // count).clamp(min=1)
    return chosen & (number.view_as(chosen) % step == 0)


class Scored(NamedTuple):
    """Predictions held against what follows.

    Attributes:
        losses: negative log-likelihood of each token, in nats: float32 `(batch, length - 1)`, 0 where it was not asked for.
        balance: the load-balancing loss of the routers, a scalar, where a model of experts was asked for it.
        top: where no gradient is recorded, which tokens the model holds for the likeliest: bools of the same shape, false where it was
            not asked for. In training nobody asks, and it would take as long as a quarter of the loss.
    """

    losses: Tensor
    balance: Tensor | None
    top: Tensor | None


def token_losses(model: nn.Module, head: nn.Module, inputs: dict[str, Any], shown: Tensor, fused: bool = False) -> Scored:
    """What a model's prediction of each token costs.

    Args:
        model: called with what is its own of `inputs`; may be wrapped (PEFT, DDP).
        head: its language-model head, `get_output_embeddings()`.
        inputs: a batch with `input_ids` and `labels` of shape `(batch, length)`; of packed rows with `subtree_end` also.
        shown: bools `(batch, length - 1)`, the predictions to score.
        fused: through TRL's head, which was put on the model.
    """
    known = {key: value for key, value in inputs.items() if key not in OURS}
    targets = torch.where(supervised(inputs), inputs["labels"][:, 1:], inputs["input_ids"][:, 1:])
    if fused:
        labels = nn.functional.pad(torch.where(shown, targets, IGNORED), (1, 0), value=IGNORED)
        with laid_out(inputs):
            output = model(**known, labels=labels, use_cache=False, fused_lm_head=True)
        return Scored(-output.log_probs, output.aux_loss, None if torch.is_grad_enabled() else output.is_top1.bool())
    with _shown_only(head, shown), laid_out(inputs):
        output = model(**known, use_cache=False)
    losses = cross_entropy(output.logits[0].float(), targets[shown], reduction="none")
    top = None
    if not torch.is_grad_enabled():
        top = torch.zeros_like(shown).masked_scatter(shown, output.logits[0].argmax(-1) == targets[shown])
    # `masked_scatter` keeps a micro-batch in which nothing is shown connected to the model: its gradient is zero
    losses = torch.zeros(shown.shape, device=losses.device).masked_scatter(shown, losses)
    return Scored(losses, getattr(output, "aux_loss", None), top)


@contextmanager
def _shown_only(head: nn.Module, shown: Tensor) -> Iterator[None]:
    """Within the block the head sees `(1, shown positions, width)` instead of `(batch, length, width)`."""

    def choose(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][:, :-1][shown][None],)

    handle = head.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()
