"""Which runs an ablation means, which of them are still to be trained, and what is left behind when all are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..config import Resolved, resolve
from ..continuing import begun, finished
from ..recipe import RecipeError
from ..run import Run
from .comparison import Comparison, compare
from .plot import draw


def arms(resolved: Resolved) -> dict[str, Resolved]:
    """The runs that training a recipe means; they differ in nothing but the fields their arm names.

    `sft-recipes train` trains them one after the other. `build_trainer(name)` is the first alone, `build_trainer(name, arm=...)`
    another.

    Args:
        resolved: the recipe, from `config.resolve`.

    Returns:
        every arm of the ablation by its name, the first being `resolved` itself. `resolved` alone, by its recipe's name, where
        there is nothing to compare, or the person has chosen an arm or decided a field that the arms differ in.

    Raises:
        RecipeError: values that do not hold, with recipe and arm, all together.
    """
    declared = resolved.recipe.ablation
    decided = {"arm"}.union(*declared.values()) & resolved.overrides.keys()
    if len(declared) < 2 or decided:
        return {resolved.name: resolved}
    first, *others = declared
    found, faults = {first: resolved}, []
    for name in others:
        try:
            found[name] = resolve(resolved.name, resolved.scale, name, **resolved.overrides)
        except RecipeError as error:
            faults += [f"recipe '{resolved.name}', arm '{name}': {fault}" for fault in error.faults]
    if faults:
        raise RecipeError(*faults)
    return found


def pending(runs: Mapping[str, Resolved], resume: bool | None) -> dict[str, bool | None]:
    """The runs that are still to be trained, and what each one's `train` is told of resuming.

    Resuming an ablation passes over arms that are finished, and begins those that had not begun. To be asked before the first
    is trained: from then on the answers change, and not on all processes at the same time.
    """
    if not resume:
        return dict.fromkeys(runs, resume)
    left = {name: _run(arm) for name, arm in runs.items() if len(runs) == 1 or not _finished(arm)}
    first = next(iter(runs))
    return {name: name == first or begun(run) for name, run in left.items()}


def compared(runs: Mapping[str, Resolved]) -> Comparison:
    """The comparison of finished arms; `ablation.json`, `.svg` and `.png` in the run folder of the first are written."""
    found = compare({name: _run(arm).folder for name, arm in runs.items()})
    run = _run(next(iter(runs.values())))
    run.write("ablation.json", found)
    draw(found, run.folder)
    return found


def _run(arm: Resolved) -> Run:
    return Run(Path(str(arm.config.output_dir)))


def _finished(arm: Resolved) -> bool:
    """Whether the run folder holds this very run from beginning to end."""
    return finished(_run(arm)) and _run(arm).read("recipe.json")["overrides"] == arm.overrides
