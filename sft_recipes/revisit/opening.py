"""A finished run, opened again from its folder, and merged anew."""

from __future__ import annotations

from typing import Any

from .. import evaluate as judging
from .. import export
from ..config import Resolved, resolve
from ..lineage import found_again
from ..prepare import Prepared, prepare
from ..recipe import Recipe, RecipeError
from ..run import Run, find
from ..weights import load_adapter, load_base, refuse_another


def reopen(name: str, **changed: Any) -> tuple[Run, Resolved]:
    """A run and the recipe it was made with, but for fields that are `changed`.

    Raises:
        RecipeError: no such run, its recipe is gone, or the run that it started from is gone or has changed.
    """
    run = find(name)
    said = run.read("recipe.json")
    if spelt := [key for key in ("adapter", "quantization") if said["overrides"].get(key) is not None]:
        raise RecipeError(f"{run.folder} was made in Python with its own {' and '.join(spelt)}, which recipe.json only describes")
    again = {"start_from": found_again(run, said["from"])} if said.get("from") else {}
    return run, resolve(said["recipe"], said["scale"], **{**said["overrides"], **again, **changed})


def refuse_changed(run: Run, prepared: Prepared, other_data: bool = False) -> None:
    """Hold what was read again against what the run was made with.

    Args:
        other_data: a person has named other held-out data than the run's.

    Raises:
        RecipeError: data or chat template are others by now.
    """
    said = run.read("recipe.json")
    if not other_data and prepared.held_out.hash != said["data"]["held_out"]:
        raise RecipeError(f"{run.folder}: the held-out data are not those of the run; they have changed since, or were in memory")
    if prepared.chat_template_hash != said.get("chat_template"):
        raise RecipeError(f"{run.folder}: the chat template is not the one of the run; the recipe or its base has changed since")


def _replies(model: Any, prepared: Prepared, count: int) -> list[list[int]]:
    prompts = [question.prompt_ids for question in prepared.questions[:count]]
    limit = prepared.recipe.max_new_tokens
    return judging.generate(model, prompts, prepared.stop_ids, prepared.tokenizer.pad_token_id, limit)


def merge(name: str, **changed: Any) -> dict[str, Any]:
    """Merge a run's adapter again, and prove it; the numbers of each base go into `metrics.json`.

    Args:
        name: the run.
        **changed: `base` and `max_kl` of the recipe.

    Returns:
        the proof, with `faults` where the run's `merged/` was left as it was.
    """
    run, resolved = reopen(name, **changed)
    if not run.adapter.is_dir():
        raise RecipeError(f"{run.folder} holds no adapter/: nothing to merge")
    recipe, metrics = resolved.recipe, run.read("metrics.json")
    prepared = prepare(resolved.trainer_class, recipe, resolved.config.max_length)
    refuse_changed(run, prepared)
    said = _said(run, recipe, prepared)
    about = {"recipe": run.read("recipe.json"), "metrics": metrics, "samples": run.read_lines("samples.jsonl")}
    proof = export.deploy(recipe, prepared.tokenizer, run.adapter, said, run.merged, about)
    known = metrics["merge"] or {}
    kept = known if proof["faults"] and known else proof
    run.write("metrics.json", {**metrics, "merge": {**kept, "bases": {**known.get("bases", {}), **proof["bases"]}}})
    return proof


def _said(run: Run, recipe: Recipe, prepared: Prepared) -> export.Record:
    """What the run's adapter says on the base it was trained on."""
    refuse_another(run.adapter, recipe)
    trained: Any = load_adapter(load_base(recipe, prepared.tokenizer), run.adapter).eval()
    prompts = [question.prompt_ids for question in prepared.questions[: export.PROMPTS]]
    answered = list(zip(prompts, _replies(trained, prepared, len(prompts)), strict=True))
    served = export.served_prompts((prepared.train, prepared.held_out))
    return export.record(trained, recipe, prepared.tokenizer, prepared.stop_ids, prepared.held_out.rows, answered, served)
