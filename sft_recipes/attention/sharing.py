"""Which models can read packed rows, from what they are; and the proof, on the model at hand, that it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..recipe import RecipeError
from .interface import laid_out

KINDS = {"full_attention", "sliding_attention", "mlp", "moe"}  # layers in which a token sees what a mask of ours says, or itself
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
FAR = 2048  # tokens of the proof at most: a longer window is not filled
EXACT, ROUGH = 1e-4, 5e-2  # relative differences that rounding explains, in float32 and with fewer bits


def obstacle(model: Any, adapter: Any = None) -> str:
    """Why a model cannot read several conversations in one row; empty where it can.

    Args:
        model: may be on the meta device.
        adapter: the `PeftConfig` that is put on it, or `None`.
    """
    decoder = model.get_decoder()
    config, name = decoder.config, type(decoder).__name__
    others = sorted({str(kind) for kind in getattr(config, "layer_types", None) or ()} - KINDS)
    if others:
        return f"{name} has layers of {', '.join(others)}, which cannot be told what belongs together in a row"
    if decoder._is_stateful or any(isinstance(module, CONVOLUTIONS) for module in decoder.modules()):
        return f"{name} has recurrent or convolutional layers, which cannot be told what belongs together in a row"
    if not (decoder._supports_attention_backend and decoder._can_set_attn_implementation()):
        return f"the attention of {name} cannot be exchanged"
    if getattr(config, "attention_dropout", 0):
        return f"attention_dropout is {config.attention_dropout:g}, which the kernels of packed rows do not have"
    if getattr(adapter, "is_prompt_learning", False):
        return f"{adapter.peft_type.value} puts tokens of its own before each row"
    return ""


def prove(model: Any, vocabulary: int) -> None:
    """Read a small tree as one row and as separate ones, and change one of its branches.

    A prefix that fills the model's window (up to 2,048 tokens), two branches and another document; random tokens, in
    evaluation mode, on the model's device. Nothing of the model is changed.

    Args:
        model: with `install`; may be wrapped by PEFT.
        vocabulary: token ids are drawn from below this number.

    Raises:
        RecipeError: the logits of a branch are not those of the separate row, or depend on another branch.
    """
    window = getattr(model.get_decoder().config, "sliding_window", None) or 0
    row = _tree(min(window, FAR) + 3, vocabulary, next(model.parameters()).device)
    ids, branches = row["input_ids"], row.pop("branches")
    bound = EXACT if next(model.parameters()).dtype == torch.float32 and not getattr(model, "is_quantized", False) else ROUGH
    with _judged(model), torch.no_grad():
        together, mixed = _logits(model, row), _logits(model, {**row, "input_ids": _changed(ids, branches[0][-1], vocabulary)})
        for number, path in enumerate(branches):
            alone = _logits(model, {"input_ids": ids[:, path]})[0]
            apart = _difference(together[0, path], alone)
            if not apart <= bound:
                raise _refused(f"the logits of a branch differ by {apart:.1e} from those of the same tokens in a row of their own")
            leaked = _difference(mixed[0, path], together[0, path])
            if number and not leaked <= bound:
                raise _refused(f"changing one branch changes the logits of another by {leaked:.1e}")


def _tree(prefix: int, vocabulary: int, device: torch.device) -> dict[str, Any]:
    """A batch with one forest, and the indices of the tokens that the leaf of each of its branches sees."""
    sizes, own = (prefix, 5, 6, 7), torch.Generator().manual_seed(0)
    starts = [0, prefix, prefix + 5, prefix + 11, prefix + 18]
    ends = torch.tensor([starts[3], *starts[2:]]).repeat_interleave(torch.tensor(sizes))
    trunk = list(range(prefix))
    branches = [trunk + list(range(*starts[1:3])), trunk + list(range(*starts[2:4])), list(range(*starts[3:5]))]
    position = torch.tensor([*trunk, *range(prefix, prefix + 5), *range(prefix, prefix + 6), *range(7)])
    ids = torch.randint(vocabulary, (1, starts[-1]), generator=own)
    row = {"input_ids": ids, "position_ids": position[None], "subtree_end": ends[None]}
    return {**{name: value.to(device) for name, value in row.items()}, "branches": branches}


def _changed(ids: Tensor, at: int, vocabulary: int) -> Tensor:
    """The same with the last five tokens up to one index replaced."""
    changed = ids.clone()
    changed[0, at - 4 : at + 1] = (changed[0, at - 4 : at + 1] + 1) % vocabulary
    return changed


def _logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with laid_out(batch):
        logits: Tensor = model(**{name: value for name, value in batch.items() if name != "subtree_end"}, use_cache=False).logits
    return logits.float()


def _difference(found: Tensor, expected: Tensor) -> float:
    """L2 norm of the difference, relative to that of what is expected around its mean."""
    return float((found - expected).norm() / (expected - expected.mean()).norm())


def _refused(what: str) -> RecipeError:
    return RecipeError(f"packed rows are not exact for this model: {what}; take --packing none, one conversation a row")


@contextmanager
def _judged(model: nn.Module) -> Iterator[None]:
    """Within the block a model is in evaluation mode; afterwards each module is as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
