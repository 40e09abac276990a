"""From what was trained to a proven folder: merge, save, prove, and only then rename into place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..recipe import Recipe, RecipeError
from ..weights import refuse_another
from ..whole import put, unfinished
from .card import write_card
from .folder import save
from .merging import Merged, cast, is_tied, merged
from .proof import prove
from .record import Record

NAMED = 5  # layers named where a proof fails
OF_A_BASE = ("kl", "max_kl", "loss")


def deploy(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    source: Path | PreTrainedModel,
    said: Record,
    target: Path,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the trained model as one deployable folder, and prove it.

    Args:
        recipe: its `base` says what an adapter is merged into; where it is `measured`, into both, and the one with the lower
            held-out loss is kept, of those that hold.
        tokenizer: with the chat template that was trained with.
        source: the folder of the trained adapter; or the model itself, where all of it was trained.
        said: what the trained model says, its stop tokens among it.
        target: `merged/`: left as it was unless the proof holds. A fully fine-tuned model that fails it is kept as
            `merged.refused`, because there is no other copy.
        about: what the model card tells, see `write_card`.

    Returns:
        the proof, see `prove`; with `base`, and under `bases` the numbers of each base that was merged into. Its `faults`
        are empty where the folder is in place.

    Raises:
        RecipeError: another base than the adapter was trained on, or no room on the disk.
    """
    adapter = source if isinstance(source, Path) else None
    if adapter is not None:
        refuse_another(adapter, recipe)
    with ExitStack() as stack:
        tried: dict[str, tuple[Path, dict[str, Any]]] = {}
        for base in _bases(recipe, adapter):
            folder = stack.enter_context(unfinished(target, base))
            tried[base] = folder, _attempt(recipe, tokenizer, source, base, said, folder)
        best = min(tried, key=lambda base: (bool(tried[base][1]["faults"]), tried[base][1].get("loss", 0.0)))
        bases = {base: {key: proof[key] for key in OF_A_BASE if key in proof} for base, (_, proof) in tried.items()}
        folder, found = tried[best]
        proof = {**found, "base": best, "bases": bases}
        if not proof["faults"]:
            write_card(folder, recipe, proof, about)
            put(folder, target)
        elif adapter is None:
            put(folder, target.with_name(f"{target.name}.refused"))
    return proof


def _attempt(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, source: Path | PreTrainedModel, base: str, said: Record, folder: Path
) -> dict[str, Any]:
    """Save what was trained on one base, and hold it against the record; the merged model's memory is free by then."""
    with _whole(recipe, tokenizer, source, base) as whole:
        save(whole.model, tokenizer, recipe, set(said.stop_ids), folder)
        said.tied = is_tied(whole.model)
        moved = whole.moved
        del whole
    proof = prove(folder, said, folder.with_name(".proof"))
    return {**proof, "faults": proof["faults"] + _too_far(proof, recipe.max_kl, moved)}


def refuse(proof: Mapping[str, Any], target: Path) -> None:
    """Stop at a proof that does not hold.

    Raises:
        RecipeError: everything that differs from what was trained, and what is kept.
    """
    if faults := proof.get("faults"):
        adapter, refused = target.with_name("adapter"), target.with_name(f"{target.name}.refused")
        kept = f"the adapter is kept in {adapter}" if adapter.is_dir() else f"the model is kept as {refused}"
        found = [f"{target}: not proven to be the model that was trained: {fault}" for fault in faults]
        raise RecipeError(*found, f"nothing was deployed; {kept}")


def _bases(recipe: Recipe, adapter: Path | None) -> list[str]:
    """What is merged into; without quantisation the original is what was trained on."""
    if adapter is None or recipe.quantization is None:
        return ["trained"]
    return ["trained", "original"] if recipe.base == "measured" else [recipe.base]


@contextmanager
def _whole(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, source: Path | PreTrainedModel, base: str) -> Iterator[Merged]:
    if isinstance(source, Path):
        yield merged(recipe, tokenizer, source, base)
        return
    with cast(source, getattr(torch, recipe.dtype)) as whole:
        yield whole


def _too_far(proof: Mapping[str, Any], bound: float, moved: Mapping[str, float]) -> list[str]:
    """The fault of a model that says something else, with the layers that the adapter changed most."""
    if "kl" not in proof or proof["kl"] <= bound:
        return []
    most = sorted(moved, key=moved.__getitem__, reverse=True)[:NAMED]
    layers = ", ".join(f"{name.removeprefix('base_model.model.')} ({moved[name]:.1%})" for name in most)
    told = f"; the adapter moved most: {layers}" if layers else ""
    return [f"mean KL {proof['kl']:.1e} per supervised token to the trained model, the bound is {bound:.0e} (--max_kl){told}"]
