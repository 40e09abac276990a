"""The earlier run that a run starts from: found, judged fit for it, and what `recipe.json` says of it.

From its `merged/` folder, a run trains what was deployed, with a fresh adapter or in full; from its `adapter/`, it trains that
adapter on. Optimiser, schedule and step count are fresh either way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .recipe import Recipe, RecipeError
from .run import Run, find
from .weights import identity, saved_adapter

SETTLED = {"merged": ("model", "revision", "from_scratch"), "adapter": ("adapter",)}  # by the run that is started from


def begin(recipe: Recipe, given: Mapping[str, Any], output_dir: str) -> tuple[Recipe, dict[str, Any] | None]:
    """A recipe that names a run in `start_from`, with that run's model or adapter in place of its own.

    Args:
        recipe: at its scale, with what the person changed.
        given: what the person changed.
        output_dir: the new run's own folder.

    Returns:
        the recipe, and what `recipe.json` says under `from`: `run`, `part` (`merged` or `adapter`), `recipe`, `scale`, `primary`,
        `score` (after training), `sha256` of the part's weights, the `base` it was trained on, and `from`, its own origin.
        For a recipe without `start_from`, itself and `None`.

    Raises:
        RecipeError: no such run, one that cannot be started from, or fields that contradict it; all together.
    """
    if recipe.start_from is None:
        return recipe, None
    run, part = located(recipe.start_from)
    said = run.read("recipe.json")
    faults = _unfit(run, part)
    if run.folder.resolve().is_relative_to(Path(output_dir).resolve()):
        faults.append(f"{run.folder} is where this run itself would go, and would be moved aside; name another folder with --output_dir")
    if part == "adapter" and recipe.adapter is None:
        faults.append(f"this recipe trains all weights, so it cannot train an adapter on; start from the model: --from {run.folder}")
    faults += [f"it decides on `{key}`; leave {key} out" for key in SETTLED[part] if given.get(key) is not None]
    if faults:
        raise RecipeError(*(f"start_from {recipe.start_from}: {fault}" for fault in faults))
    return _started(recipe, run, part), _told(run, part, said)


def located(start_from: str) -> tuple[Run, str]:
    """The run that `start_from` means, and which part of it: `merged`, unless its path ends in `adapter`."""
    path = Path(start_from)
    return (find(str(path.parent)), path.name) if path.name in SETTLED else (find(start_from), "merged")


def found_again(run: Run, told: Mapping[str, Any]) -> str:
    """What `start_from` is now for a run that was made before: the same weights, also where their run was set aside since.

    Args:
        run: the later one.
        told: `from` in its `recipe.json`.

    Raises:
        RecipeError: they are gone, or others by now.
    """
    origin, part = Path(told["run"]), told["part"]
    for folder in (origin, *sorted(origin.parent.glob(f"{origin.name}.*"))):
        if (folder / part).is_dir() and told["sha256"] in (None, identity(str(folder / part))["sha256"]):
            return str(folder / part)
    state = "has changed since" if (origin / part).is_dir() else "is gone"
    raise RecipeError(f"{run.folder} started from {origin / part}, which {state}; put back what it was, as it is part of this run's model")


def _unfit(run: Run, part: str) -> list[str]:
    """Why a run cannot be started from."""
    folder = run.folder / part
    if part == "merged" and not folder.is_dir() and _was_refused(run):
        other = f"; its adapter can be trained on: --from {run.adapter}" if run.adapter.is_dir() else ""
        return [f"{run.folder}: the model to be deployed was not the one that was trained, and was refused{other}"]
    if part == "adapter" and not folder.is_dir() and run.merged.is_dir():
        return [f"{run.folder} holds no adapter/: it trained all weights; start from its model: --from {run.folder}"]
    missing = [name for name in (f"{part}/", "metrics.json") if not (run.folder / name).exists()]
    return [f"{run.folder} holds no {missing[0]}: the run has not finished"] if missing else []


def _was_refused(run: Run) -> bool:
    proof = run.read("metrics.json").get("merge") if (run.folder / "metrics.json").is_file() else None
    return bool((proof or {}).get("faults")) or (run.folder / "merged.refused").is_dir()


def _started(recipe: Recipe, run: Run, part: str) -> Recipe:
    if part == "adapter":
        return dataclasses.replace(recipe, adapter=saved_adapter(run.adapter))
    return recipe.with_fields({"model": str(run.merged), "from_scratch": False})


def _told(run: Run, part: str, said: Mapping[str, Any]) -> dict[str, Any]:
    metrics = run.read("metrics.json")
    return {
        "run": str(run.folder),
        "part": part,
        "recipe": said["recipe"],
        "scale": said["scale"],
        "primary": metrics["primary"],
        "score": metrics["after"].get(metrics["primary"]),
        "sha256": identity(str(run.folder / part))["sha256"],
        "base": said.get("base"),
        "from": said.get("from"),
    }
