"""Several runs side by side on one page: their scores, their curves, what differs between them, what each says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..recipe import RecipeError
from ..run import Run
from ..scores import LOWER
from . import curves, facts, questions
from .page import rendered
from .plots import Plot, over_steps
from .reading import Told, read
from .wording import plain

NAME = "compared.html"
APART = ("output_dir", "run_name")  # every run has its own
PARTS = ("adapter", "quantization")  # settings with settings of their own


def write_compared(runs: Sequence[Run], file: Path) -> Path:
    """Write the page of several runs, whole or not at all.

    Args:
        runs: finished ones, two or more; the first one's primary score is what right and wrong mean.
        file: replaced if it exists.

    Returns:
        the file.

    Raises:
        RecipeError: a run is missing or has not finished, one is named twice, or the file cannot be written.
    """
    told = {name: _finished(run) for name, run in named(runs).items()}
    try:
        Run(file.parent).write_text(file.name, rendered("compared.html.jinja", **_contents(told)))
    except OSError as error:
        raise RecipeError(f"--html {file}: {error.strerror}") from error
    return file


def named(runs: Sequence[Run]) -> dict[str, Run]:
    """The runs by the names of their folders, or by their paths where those are the same.

    Raises:
        RecipeError: one is named twice.
    """
    folders = [run.folder.resolve() for run in runs]
    if twice := sorted({str(run.folder) for run, folder in zip(runs, folders, strict=True) if folders.count(folder) > 1}):
        raise RecipeError(*(f"{name}: named twice; a run is compared with others" for name in twice))
    names = [folder.name for folder in folders]
    return {name if names.count(name) == 1 else str(run.folder): run for name, run in zip(names, runs, strict=True)}


def after(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """The held-out scores after training, by the name of the run; errors as `write_compared` has them."""
    return {name: _finished(run).metrics["after"] for name, run in named(runs).items()}


def _finished(run: Run) -> Told:
    run.read("metrics.json")  # says what is missing
    return read(run)


def _contents(told: Mapping[str, Told]) -> dict[str, Any]:
    """What the template prints."""
    first = next(iter(told.values()))
    stops = list(dict.fromkeys(stop for one in told.values() for stop in one.metrics.get("stop_tokens") or ()))
    shown = questions.runs({name: one.samples for name, one in told.items()}, first.primary, stops)
    return {
        "names": list(told),
        "headings": {name: facts.heading(one) for name, one in told.items()},
        "endings": {name: facts.ending(one) for name, one in told.items()},
        "primary": first.primary,
        "scores": _scores(told),
        "same_questions": len({(one.recipe.get("data") or {}).get("held_out") for one in told.values()}) == 1,
        "plots": _plots(told, first.primary),
        "differing": _differing(told),
        "shown": shown,
        "commands": {name: facts.commands(one) for name, one in told.items()},
    }


def _scores(told: Mapping[str, Told]) -> list[tuple[str, list[tuple[float | None, bool]]]]:
    """A line per score: for each run its value, and whether it is the best, where they differ."""
    found = []
    for name in dict.fromkeys(name for one in told.values() for name in one.metrics["after"]):
        values = [one.metrics["after"].get(name) for one in told.values()]
        known = [value for value in values if value is not None]
        best = None if name == "length" else min(known) if name.endswith("loss") or name in LOWER else max(known)
        alike = len(set(values)) == 1
        found.append((name, [(value, value is not None and value == best and not alike) for value in values]))
    return found


def _plots(told: Mapping[str, Told], primary: str) -> list[Plot]:
    def lines(of: Any) -> list[curves.Line]:
        return [curves.Line(name, of(one)) for name, one in told.items()]

    return [
        *over_steps(f"{primary} on held-out conversations", lines(lambda one: curves.judged(one, primary)), wide=True, share=True),
        *over_steps("Held-out loss, nats per supervised token", lines(lambda one: curves.judged(one, "eval_loss")), wide=True),
        *over_steps("Loss on retained data", lines(lambda one: curves.judged(one, "retain_loss"))),
        *over_steps("Training loss", lines(lambda one: curves.logged(one, "loss"))),
        *over_steps("Gradient norm", lines(lambda one: curves.logged(one, "grad_norm"))),
        *over_steps("Supervised tokens per second", lines(lambda one: curves.logged(one, "supervised_tokens_per_second"))),
    ]


def _differing(told: Mapping[str, Told]) -> list[tuple[str, list[str]]]:
    """Every setting, hash and version that is not the same in all runs, with its value in each."""
    flat = [dict(_flat(one.recipe)) for one in told.values()]
    names = dict.fromkeys(name for settings in flat for name in settings)
    rows = [(name, [_said(settings.get(name)) for settings in flat]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _flat(recipe: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The settings of `recipe.json`: its recipe (whose `config` is in the resolved one), configuration, hashes and versions."""
    resolved = recipe.get("resolved", {})
    whole = [(name, value) for name, value in resolved.items() if name not in ("config", "ablation", *PARTS)]
    parts = [(f"{part}.{name}", value) for part in PARTS for name, value in (resolved.get(part) or {}).items()]
    config = [(name, value) for name, value in recipe.get("config", {}).items() if name not in APART]
    hashes = [(f"{name} data, SHA-256", sha256) for name, sha256 in (recipe.get("data") or {}).items()]
    about = [("recipe", recipe.get("recipe")), ("scale", recipe.get("scale")), ("base, SHA-256", (recipe.get("base") or {}).get("sha256"))]
    return [*about, *whole, *parts, *config, *hashes, *(recipe.get("versions") or {}).items()]


def _said(value: Any) -> str:
    text = "–" if value is None else str(plain(str(value)))
    return text if len(text) <= 200 else f"{text[:200]} …"
