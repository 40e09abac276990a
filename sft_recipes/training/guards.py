"""What watches the first steps and every step: a gradient that cannot be used, and a tensor that does not learn."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ..recipe import RecipeError
from .batches import one_by_one

EXPLODED = 10.0  # times the largest gradient norm of the run so far
HISTORY = 8  # steps before that is known well enough
IN_A_ROW = 5  # steps skipped one after the other, after which nothing is learned any more
SHOWN = 6  # conversations named in one message
FIRST = 3  # steps after which every tensor has moved: LoRA's A gets a gradient from the second step on, as B begins at zero


class Guard:
    """Judges each step by its loss and gradient norm, before the weights are changed.

    Attributes:
        rule: `stop` or `skip`.
        skipped: one line for each step that was left out.
    """

    def __init__(self, rule: str):
        self.rule = rule
        self.skipped: list[str] = []
        self._largest, self._steps, self._in_a_row = 0.0, 0, 0

    def fault(self, loss: float, norm: float) -> str | None:
        """What is wrong with a step, or `None`; a sound step joins the history.

        Args:
            loss: of the step, over all processes, in nats.
            norm: L2 norm of its gradient before clipping.
        """
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient norm is {norm}"
        if self._steps >= HISTORY and norm > EXPLODED * self._largest:
            return f"the gradient norm is {norm:.3g}, the largest of the {self._steps} steps before it was {self._largest:.3g}"
        self._largest, self._steps, self._in_a_row = max(self._largest, norm), self._steps + 1, 0
        return None

    def progress(self) -> dict[str, Any]:
        """What the judgement of later steps depends on, as plain data."""
        return {"largest": self._largest, "steps": self._steps, "in_a_row": self._in_a_row, "skipped": self.skipped}

    def take_up(self, progress: dict[str, Any]) -> None:
        """Go on from what `progress` gave."""
        self._largest, self._steps, self._in_a_row = progress["largest"], progress["steps"], progress["in_a_row"]
        self.skipped = list(progress["skipped"])

    def refuse(self, step: int, fault: str, culprits: Sequence[str], kept: str) -> str:
        """Stop at a bad step, or give the line that says it is skipped.

        Args:
            step: its number, from 1.
            fault: from `fault`.
            culprits: the conversations of its batch with what each has to do with it, worst first.
            kept: what is left of the run so far.

        Raises:
            RecipeError: the rule is `stop`, or too many steps were skipped in a row.
        """
        more = f"; and {len(culprits) - SHOWN} more" if len(culprits) > SHOWN else ""
        line = f"step {step}: {fault}; its batch, worst first: {'; '.join(culprits[:SHOWN])}{more}"
        self._in_a_row += 1
        if self.rule == "stop":
            raise RecipeError(f"{line}. The step was not taken; {kept}. Mend the rows, or leave such steps out with --bad_step skip")
        self.skipped.append(line)
        if self._in_a_row >= IN_A_ROW:
            raise RecipeError(f"{line}. {IN_A_ROW} steps in a row could not be used; {kept}")
        return line


def blame(
    model: nn.Module, batches: Iterable[dict[str, Any]], loss: Callable[[dict[str, Any]], tuple[Tensor, Tensor]]
) -> list[tuple[float, str]]:
    """What each conversation of a step has to do with its gradient, found one by one, without touching the gradients that are there.

    Args:
        model: not wrapped: nothing here waits for another process.
        batches: of this process, with the `source` of each conversation.
        loss: what a batch adds to the loss of the step, and its own mean loss.

    Returns:
        for each the norm of what it adds to the gradient (infinite where that is no number), and a text with its conversation.
    """
    parameters, found = [p for _, p in trainable(model)], []
    with torch.random.fork_rng():
        for batch in batches:
            for source, row in one_by_one(batch):
                share, mean = loss(row)
                gradients = torch.autograd.grad(share, parameters, allow_unused=True)
                norm = float(torch.linalg.vector_norm(torch.stack([g.norm().float() for g in gradients if g is not None])))
                text = f"{source} (loss {mean.item():.3g}, gradient norm {norm:.3g})"
                found.append((norm if math.isfinite(norm) else math.inf, text))
    return found


class FirstSteps(TrainerCallback):
    """After the first steps, names the trainable tensors that have had no gradient or have not moved.

    Of each tensor one element is watched, the one with the largest gradient: if that has not changed, nothing has.

    Args:
        accelerator: sums what the processes have seen (each may hold a part of a tensor).
        report: called once with the names, what is wrong with each, and the number of all.
    """

    def __init__(self, accelerator: Any, report: Callable[[dict[str, str], int], None]):
        self.accelerator, self.report = accelerator, report
        self.on_train_begin()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.steps = 0
        self.seen: dict[str, list[bool]] = {}
        self.before: dict[str, tuple[Tensor, Tensor]] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.steps < FIRST:
            self.before = {name: watched for name, p in trainable(model) if (watched := _largest(p)) is not None}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.steps >= FIRST or all(p.grad is None for _, p in trainable(model)):  # the last: a step that was skipped
            return
        for name, parameter in trainable(model):
            seen = self.seen.setdefault(name, [False, False])
            if name in self.before:
                at, value = self.before[name]
                seen[0], seen[1] = True, seen[1] or bool(_local(parameter).flatten()[at] != value)
        self.before, self.steps = {}, self.steps + 1
        if self.steps == min(FIRST, state.max_steps):
            self.report(self._still(), len(self.seen))

    def _still(self) -> dict[str, str]:
        flags = torch.tensor([list(map(float, seen)) for seen in self.seen.values()], device=self.accelerator.device)
        found = self.accelerator.reduce(flags, "sum").gt(0).tolist()
        said = {(False, False): "has had no gradient", (True, False): "has had a gradient and has not moved"}
        return {name: said[tuple(seen)] for name, seen in zip(self.seen, found, strict=True) if not all(seen)}


def trainable(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Names and tensors that learn, without what wrappers (DDP, `torch.compile`) put before the names."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield re.sub(r"^(module\.|_orig_mod\.)+", "", name), parameter


def _local(tensor: Any) -> Tensor:
    """What this process holds of a tensor that may be sharded (FSDP2)."""
    return tensor.detach().to_local() if hasattr(tensor, "to_local") else tensor.detach()


def _largest(parameter: nn.Parameter) -> tuple[Tensor, Tensor] | None:
    """Where the gradient of a tensor is largest and what stands there; `None` where it is zero everywhere."""
    gradient = None if parameter.grad is None else _local(parameter.grad).flatten()
    if gradient is None or not len(gradient):
        return None
    at = gradient.abs().argmax()
    return (at, _local(parameter).flatten()[at].clone()) if gradient[at] != 0 else None
