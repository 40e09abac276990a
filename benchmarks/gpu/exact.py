"""Whether a tree row says what its conversations say alone: hidden states and gradients, on whatever device; NF4 and noise beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sft_recipes.attention import install, laid_out, path_lengths
from sft_recipes.optim.neftune import Neftune
from sft_recipes.rows import pack
from sft_recipes.training.batches import collated
from sft_recipes.training.loss import supervised, token_losses

from .models import on_device

Rows = Sequence[dict[str, Any]]
LAYOUTS = ("alone", "padded", "packed", "tree")  # the first three are TRL's
ALPHA = 5.0


def batches(layout: str, rows: Rows, pad: int) -> list[dict[str, Any]]:
    """Separate rows as batches on the device.

    Args:
        layout: one of `LAYOUTS`: a batch each, one padded batch, one row end to end, or one tree row.
        rows: each a conversation of its own, whose `source` ends in its number.
        pad: id of the pad token.
    """
    if layout == "tree":
        return [on_device(collated(lambda rows: {}, list(pack(rows, share=True, count=1).rows)))]
    collate = DataCollatorForLanguageModeling(pad, padding_free=layout == "packed")
    together = [[row] for row in rows] if layout == "alone" else [list(rows)]
    return [on_device(collated(collate, some)) for some in together]


def read(model: Any, found: list[dict[str, Any]], learn: bool = True) -> dict[str, Tensor]:
    """What a model makes of batches: `hidden`, the last hidden states before supervised tokens in the order of their conversations,
    and by name the gradient of the mean loss over these tokens.

    Args:
        model: with an adapter, and `install`.
        found: from `batches`.
        learn: whether gradients are wanted.
    """
    head, states, keys = model.get_output_embeddings(), list[Tensor](), list[Tensor]()
    count = sum(int(supervised(batch).sum()) for batch in found)
    model.zero_grad()
    with torch.set_grad_enabled(learn):
        for batch in found:
            shown = supervised(batch)
            handle = head.register_forward_pre_hook(lambda _, args, shown=shown: states.append(args[0].detach()[:, :-1][shown]))
            loss = token_losses(model, head, batch, shown).losses.sum() / count
            handle.remove()
            keys.append(_keys(batch, shown))
            if learn:
                loss.backward()
    order = torch.cat(keys).argsort()
    gradients = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {"hidden": torch.cat(states)[order].float(), **gradients}


def _keys(batch: dict[str, Any], shown: Tensor) -> Tensor:
    """A number for each supervised token: its conversation's and its place in it."""
    row, at = shown.nonzero().unbind(1)
    at = at + 1
    if "owner" in batch:
        which, place = batch["owner"][0, at].long(), batch["position_ids"][0, at].long()
    elif len(batch["source"]) > len(shown):
        which, place = (batch["position_ids"][0] == 0).cumsum(0)[at] - 1, batch["position_ids"][0, at]
    else:
        which, place = row, at
    numbers = torch.tensor([int(source.rpartition(":")[2]) for source in batch["source"]], device=at.device)
    return numbers[which] * 2**24 + place


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, float]:
    """How far two readings are from each other, relative in L2: hidden states, and all gradients together.

    Raises:
        ArithmeticError: they have not the same tensors, or something that is no number.
    """
    if found.keys() != expected.keys() or not all(bool(value.isfinite().all()) for value in found.values()):
        raise ArithmeticError("two readings of the same conversations cannot be compared")
    squares = {name: ((found[name] - value).square().sum(), value.square().sum()) for name, value in expected.items()}
    states = squares.pop("hidden")
    gradients = [torch.stack(some).sum() for some in zip(*squares.values(), strict=True)] or [torch.zeros(()), torch.ones(())]
    return float((states[0] / states[1]).sqrt()), float((gradients[0] / gradients[1]).sqrt())


def leaked(model: Any, rows: Rows, pad: int) -> float:
    """The largest change of a hidden state when another conversation of its tree row is changed; 0 where nothing leaks."""
    install(model)
    (batch,) = batches("tree", rows, pad)
    mine = batch["owner"][0] == 0
    other = {**batch, "input_ids": torch.where(mine, batch["input_ids"] ^ 1, batch["input_ids"])}
    before, after = (_states(model, some) for some in (batch, other))
    if torch.equal(before[mine], after[mine]):
        raise ArithmeticError("a conversation was changed, and what the model makes of it was not")
    return float((before[~mine] - after[~mine]).abs().max())


@torch.no_grad()
def _states(model: Any, batch: dict[str, Any]) -> Tensor:
    with laid_out(batch):
        found: Tensor = model.get_decoder()(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)[0][0]
    return found


@torch.no_grad()
def dequantised(model: Any, rows: Rows, pad: int) -> float:
    """How far the logits of a quantised base are from those of the plain layers that its bits stand for, relative in L2.

    Args:
        model: without an adapter; afterwards no longer quantised.
    """
    (batch,) = batches("alone", rows[:1], pad)
    before = model(input_ids=batch["input_ids"], use_cache=False).logits.float()
    after = model.dequantize()(input_ids=batch["input_ids"], use_cache=False).logits.float()
    return float((before - after).norm() / after.norm())


def noise(model: Any, rows: Rows, pad: int) -> float:
    """NEFTune's noise in a tree row, its root mean square over that of a uniform draw in the paper's bound; 1 where it is right.

    The bound is alpha / sqrt(L * d) in the units of the embedding's table, L the tokens of the conversation (arXiv 2310.05914).
    """
    (batch,) = batches("tree", rows, pad)
    caught: list[Tensor] = []
    layer = model.get_decoder().layers[0]
    handle = layer.register_forward_pre_hook(lambda _, a, k: caught.append((a[0] if a else k["hidden_states"]).detach()), with_kwargs=True)
    made, lengths = Neftune(model, ALPHA), path_lengths(batch)
    assert lengths is not None
    model.train()
    for wanted in (False, True):
        with torch.no_grad():
            if wanted:
                with made.during(batch, lengths):
                    _states(model, batch)
            else:
                _states(model, batch)
    handle.remove()
    clean, noisy = (states[0].double() for states in caught)
    bound = ALPHA * made.scale / (lengths[0].double() * clean.shape[-1]).sqrt()
    return float(((noisy - clean) / bound[:, None]).square().mean().mul(3).sqrt())
