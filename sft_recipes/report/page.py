"""`report.html`: what a run trained, how it went, what the model says. One self-contained page: no network, no script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from ..plotting import COLOURS, styled
from ..run import Run
from ..show.page import environment
from . import curves, examples, facts, questions
from .plots import Plot, inline, over_steps
from .reading import Told, read
from .wording import number, plain

NAME = "report.html"


def write_report(run: Run) -> Path:
    """Write the page of a run, whole or not at all, as far as the run has got.

    Args:
        run: its folder holds `recipe.json` at least; what else is missing is left out of the page.

    Returns:
        the file, `report.html` in the run folder.

    Raises:
        RecipeError: there is no run.
    """
    run.write_text(NAME, rendered("run.html.jinja", **_contents(read(run))))
    return run.folder / NAME


def templates() -> Environment:
    """The environment of both pages: everything is escaped, and no control character of the data is written as it is."""
    found = environment(Path(__file__).parent)
    found.finalize = plain
    found.globals |= {"colours": len(COLOURS)}
    found.filters |= {"number": number}
    return found


def rendered(template: str, **contents: Any) -> str:
    """A page as text."""
    return templates().get_template(template).render(**contents)


def _contents(told: Told) -> dict[str, Any]:
    """What the template prints."""
    metrics, stops, names = told.metrics, told.metrics.get("stop_tokens") or [], _stage_names(told)
    return {
        "name": facts.name(told),
        "folder": told.run.folder.name,
        "heading": facts.heading(told),
        "ending": facts.ending(told),
        "primary": told.primary,
        "stages": told.scores(),
        "scores": list(dict.fromkeys(name for _, found in reversed(told.scores().values()) for name in found)),
        "best": metrics.get("best") or {},
        "curves": metrics.get("curves") or {},
        "plots": _plots(told),
        "shown": questions.stages(told.samples, names, told.primary, stops),
        "stage_names": names,
        "examples": examples.examples(told.rows),
        "retain": metrics.get("retain") or {},
        "replay": metrics.get("replay") or {},
        "trained_on": facts.trained_on(told),
        "counts": facts.counts(told),
        "left_out": facts.left_out(told),
        "proof": facts.proof(told),
        "difference": (metrics.get("merge") or {}).get("first_difference") or {},
        "commands": facts.commands(told),
        "machine": facts.machine(told),
        "skipped": (metrics.get("steps") or {}).get("skipped") or [],
        "ablation": _ablation(told),
    }


def _stage_names(told: Told) -> dict[str, str]:
    """What a person calls each stage."""
    end = f"last step, {told.last_step:,}"
    return {"before": "before", "after": f"kept, step {told.kept_step:,}" if "end" in told.metrics else "after", "end": end}


def _plots(told: Told) -> list[Plot]:
    """Everything that was logged; none of what was not."""
    kept = told.kept_step if told.metrics.get("best") and told.last_step else None
    return [
        *over_steps("Scores on held-out conversations", curves.scores(told), wide=True, kept=kept, share=True),
        *over_steps("Loss, nats per supervised token", curves.losses(told), wide=True, kept=kept),
        *over_steps("How replies are said", curves.manner(told), kept=kept, share=True),
        *over_steps("Loss on retained data, nats per token", curves.retained(told), kept=kept),
        *_logged(told, "Learning rate", "learning_rate"),
        *_logged(told, "Gradient norm", "grad_norm"),
        *_logged(told, "Throughput, supervised tokens per second", "supervised_tokens_per_second"),
    ]


def _logged(told: Told, title: str, key: str) -> list[Plot]:
    return over_steps(title, [curves.Line(title, curves.logged(told, key))])


def _ablation(told: Told) -> dict[str, Any]:
    """The comparison of the arms, as a picture and a table of the scores after training."""
    if not told.ablation:
        return {}
    from ..ablation import picture

    arms = {plain(name): arm for name, arm in told.ablation["arms"].items()}
    with styled():
        svg: Markup = inline(picture({"primary": told.ablation["primary"], "arms": arms}), "The arms of the ablation")
    return {"svg": svg, "scores": {name: arm["after"] for name, arm in arms.items()}}
