"""A finished run, opened again from its folder: evaluate it, merge it anew."""

from __future__ import annotations

from typing import Any

from peft import PeftModel

from . import evaluate as judging
from . import export
from .config import Resolved, resolve
from .lineage import found_again
from .prepare import Prepared, prepare
from .recipe import Recipe, RecipeError
from .run import Run, find
from .weights import load_base, load_model, refuse_another


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


def _prepared(run: Run, resolved: Resolved) -> Prepared:
    prepared = prepare(resolved.trainer_class, resolved.recipe, resolved.config.max_length)
    if prepared.held_out.hash != run.read("recipe.json")["data"]["held_out"]:
        raise RecipeError(f"{run.folder}: the held-out data are not those of the run; they have changed since, or were in memory")
    if prepared.chat_template_hash != run.read("recipe.json").get("chat_template"):
        raise RecipeError(f"{run.folder}: the chat template is not the one of the run; the recipe or its base has changed since")
    return prepared


def _merged(run: Run) -> Any:
    if not run.merged.is_dir():
        raise RecipeError(f"{run.folder} holds no merged/: the run has not finished")
    return load_model(str(run.merged), "auto")


def evaluate(name: str) -> dict[str, float]:
    """Scores of a run's deployed folder on its recipe's held-out conversations."""
    run, resolved = reopen(name)
    model, prepared = _merged(run), _prepared(run, resolved)
    questions, stops = prepared.questions, prepared.stop_ids
    replies = _replies(model, prepared, len(questions))
    return judging.scores(judging.judge(questions, replies, prepared.tokenizer, stops, resolved.trainer_class.score))


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
    recipe, prepared, metrics = resolved.recipe, _prepared(run, resolved), run.read("metrics.json")
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
    trained: Any = PeftModel.from_pretrained(load_base(recipe, prepared.tokenizer), str(run.adapter)).eval()
    prompts = [question.prompt_ids for question in prepared.questions[: export.PROMPTS]]
    answered = list(zip(prompts, _replies(trained, prepared, len(prompts)), strict=True))
    served = export.served_prompts((prepared.train, prepared.held_out))
    return export.record(trained, recipe, prepared.tokenizer, prepared.stop_ids, prepared.held_out.rows, answered, served)
