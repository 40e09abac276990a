"""The command line: `sft-recipes VERB`. Heavy imports happen inside the verbs, and every error is one line a fault."""

from __future__ import annotations

import json
import logging
import sys
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import typer

from .arguments import FIELDS, fields, one_line_errors
from .recipe import RecipeError, summaries

app = typer.Typer(
    help="Supervised fine-tuning on TRL and PEFT that trains exactly what the model will generate when served.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, as `list` prints it.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or its recipe's name.")]
Scale = Annotated[str, typer.Option(help="full, tiny, or auto: full where a CUDA device is present.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@app.command("list")
@one_line_errors
def list_recipes(as_json: AsJson = False) -> None:
    """Recipes, one line each."""
    lines = summaries()
    if as_json:
        print(json.dumps(lines))
        return
    width = max(map(len, lines), default=0)
    for name, line in lines.items():
        print(f"{name:<{width}}  {line}")


@app.command(context_settings=FIELDS)
@one_line_errors
def check(
    context: typer.Context,
    recipe: RecipeName,
    scale: Scale = "auto",
    everything: Annotated[bool, typer.Option("--all", help="Supervise all of the data, not a sample of 20,000 conversations.")] = False,
    as_json: AsJson = False,
) -> None:
    """Every fault of a recipe, its model and its data at once, and the counts; exit 0 or 1."""
    from . import preflight, screen
    from .config import resolve

    report = preflight.check(resolve(recipe, scale, **fields(context)), sample=None if everything else preflight.SAMPLE)
    print(json.dumps(report.as_dict())) if as_json else screen.print_report(report)
    if report.faults:
        raise typer.Exit(1)


@app.command(context_settings=FIELDS)
@one_line_errors
def show(
    context: typer.Context,
    recipe: RecipeName,
    row: Annotated[int, typer.Option(help="Which training row.")] = 0,
    scale: Scale = "auto",
    html: Annotated[Path | None, typer.Option(help="Write a page instead.")] = None,
) -> None:
    """A training row as the trainer gets it: supervised tokens coloured, ids and labels side by side."""
    from . import screen
    from .config import resolve
    from .prepare import prepare

    resolved = resolve(recipe, scale, **fields(context))
    prepared = prepare(resolved.trainer_class, resolved.recipe, resolved.config.max_length)
    screen.print_row(prepared, row, html)


@app.command(context_settings=FIELDS)
@one_line_errors
def train(
    context: typer.Context,
    recipe: RecipeName,
    scale: Scale = "auto",
    resume: Annotated[bool | None, typer.Option(help="Continue the run; without it, only where it is this very run, unfinished.")] = None,
) -> None:
    """Check, train, evaluate before and after, merge, prove; every arm of an ablation, and compare them.

    --from RUN starts from what an earlier run has deployed, --from RUN/adapter trains its adapter on; --output_dir names the new run.
    """
    from . import ablation, preflight, screen
    from .config import resolve
    from .report import write_report
    from .run import Run

    resolved = resolve(recipe, scale, **fields(context))
    screen.print_start(resolved)
    arms = ablation.arms(resolved)
    pending, reports = ablation.pending(arms, resume), {}
    for name in pending:
        screen.print_arm(name, list(arms))
        reports[name] = preflight.check(arms[name])
        screen.print_report(reports[name])
    if any(report.faults or report.prepared is None for report in reports.values()):
        raise typer.Exit(1)
    for name, resuming in pending.items():
        screen.print_arm(name, list(arms))
        _train(reports.pop(name), resuming)
    if len(arms) > 1 and resolved.config.process_index == 0:
        screen.print_ablation(ablation.compared(arms))
        write_report(Run(Path(str(resolved.config.output_dir))))  # once more, with the comparison


def _train(report: Any, resuming: bool | None) -> None:
    """One run; TRL seeds all random generators when the trainer is made, so that none has an effect on the next."""
    import gc

    from . import screen
    from .run import summary
    from .trainer import from_report

    gc.collect()  # a trainer is a ring of references: the one before would keep its model until much later
    trainer = from_report(report)
    trainer.train(resume_from_checkpoint=resuming)
    if trainer.is_world_process_zero():
        screen.print_summary(summary(trainer.run))


@app.command("eval", context_settings=FIELDS)
@one_line_errors
def evaluate(
    context: typer.Context,
    what: Annotated[list[str], typer.Argument(metavar="RUN|MODEL...", help="Runs, and models: a folder or a Hub id.")],
    recipe: Annotated[str, typer.Option(help="Whose held-out conversations; a run's own without it.")] = "",
    scale: Scale = "auto",
    adapter: Annotated[bool, typer.Option("--adapter", help="A run's adapter on its base instead of the deployed folder.")] = False,
    as_json: AsJson = False,
) -> None:
    """Generate and score the held-out conversations with a run's deployed folder, or any model; several side by side."""
    from . import screen
    from .revisit import comparing

    names = list(takewhile(lambda word: not word.startswith("--"), what))
    context.args = [*what[len(names) :], *context.args]
    if not names:
        raise RecipeError("name a run or a model before any field")
    found = comparing.compare(names, recipe, scale, adapter, **fields(context))
    one = found.scores.get(names[0]) if len(names) == 1 else None
    if found.scores and as_json:
        print(json.dumps(found.scores if one is None else one))
    elif found.scores:
        screen.print_compared(found.scores) if one is None else screen.print_scores(one)
    for remark in found.remarks:
        typer.echo(f"note: {remark}", err=True)
    if found.faults:
        raise RecipeError(*found.faults)


@app.command()
@one_line_errors
def merge(
    run: RunName,
    base: Annotated[str | None, typer.Option(help="What to merge into: trained (the default), original, or measured.")] = None,
    max_kl: Annotated[float | None, typer.Option("--max_kl", help="Bound on the mean KL per supervised token, in nats.")] = None,
    as_json: AsJson = False,
) -> None:
    """Merge a run's adapter again, and prove the result; what is deployed stays as it is unless the proof holds."""
    from . import export, revisit, screen
    from .run import find

    changed = {name: value for name, value in (("base", base), ("max_kl", max_kl)) if value is not None}
    proof = revisit.merge(run, **changed)
    print(json.dumps(proof)) if as_json else screen.print_proof(proof)
    export.refuse(proof, find(run).merged)


@app.command()
@one_line_errors
def chat(
    run: RunName,
    tools: Annotated[Path | None, typer.Option(help="A JSON file with a list of tool schemas.")] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="Talk to the adapter on its base instead of the deployed folder.")] = False,
) -> None:
    """Talk to a run's deployed folder; an empty line ends."""
    from .revisit.chat import chat as talk

    talk(run, tools, adapter)


@app.command()
@one_line_errors
def report(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders, or their recipes' names; several are compared.")],
    html: Annotated[Path | None, typer.Option(help="Where the page of a comparison goes, instead of into the first run's folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """The summary of a run and its page, report.html, with the comparison of its arms after an ablation; several runs side by side."""
    from . import run as runs

    opened = [runs.find(name) for name in names]
    if len(opened) > 1:
        _compare(opened, html or opened[0].folder / "compared.html", as_json)
    elif html:
        raise RecipeError(f"--html is for several runs; the page of one is {opened[0].folder / 'report.html'}")
    else:
        _report(opened[0], as_json)


def _report(run: Any, as_json: bool) -> None:
    """One run: its page anew, as far as the run has got, and its summary."""
    from . import screen
    from .report import write_report
    from .run import summary

    page = write_report(run)
    try:
        found = summary(run)
    except RecipeError as error:
        raise RecipeError(*error.faults, f"what there is of it, is in {page}") from None
    compared = run.read("ablation.json") if (run.folder / "ablation.json").is_file() else None
    if as_json:
        print(json.dumps({**found, "ablation": compared} if compared else found))
        return
    screen.print_summary(found)
    if compared:
        screen.print_ablation(compared)


def _compare(runs: list[Any], file: Path, as_json: bool) -> None:
    """Several runs: their scores after training in a table, and a page with all that differs."""
    from . import screen
    from .report import after, write_compared

    scores, page = after(runs), write_compared(runs, file)
    if as_json:
        print(json.dumps(scores))
        return
    screen.print_compared(scores)
    typer.echo(f"Side by side: {page}")


@app.command(context_settings=FIELDS)
@one_line_errors
def plan(
    context: typer.Context,
    recipe: RecipeName,
    scale: Scale = "auto",
    gpu: Annotated[str, typer.Option(help="Such as h100, a100-80, l4, or cpu; without it what this machine has.")] = "",
    gpus: Annotated[int, typer.Option(help="How many, on all nodes together.")] = 1,
    engine: Annotated[str, typer.Option(help="ddp, zero2, zero3 or fsdp2; without it ddp for one device, fsdp2 for several.")] = "",
    mfu: Annotated[float, typer.Option(help="Share of the device's peak that is used.")] = 0.4,
    price: Annotated[float | None, typer.Option(help="US dollars an hour for one device.")] = None,
    tensor: Annotated[int, typer.Option(help="Devices that share the work on a row (tensor parallelism).")] = 1,
    as_json: AsJson = False,
) -> None:
    """Memory, steps, hours and cost, before anything is trained; with --gpu of the full scale."""
    from .plan import machine, planned, tables

    resolved, found = planned(recipe, scale, machine(gpu, gpus, engine, mfu, price, tensor), **fields(context))
    print(json.dumps(found)) if as_json else tables.show(resolved, found)


def main() -> None:
    """The `sft-recipes` command."""
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does: a person's recipe may import its neighbours
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it gives advice as soon as it is imported
    app()
