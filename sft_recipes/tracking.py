"""Experiment tracking beside what transformers' callbacks log: the recipe, the generations as tables, the scores and the report.

wandb is online where the person is logged in, else offline in the run folder, never a prompt. transformers logs all losses and
scores by itself, to wandb, trackio and tensorboard alike; generations go to the first two, tensorboard has no tables.
"""

from __future__ import annotations

import netrc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from transformers import TrainerCallback

from .excerpt import spoken
from .public import public, typed

ROWS = 100  # of a table, spread over the held-out turns


@contextmanager
def started(trainer: Any) -> Iterator[None]:
    """What tracks the run, for as long as the block lasts, on the first process.

    transformers' own callbacks log into the wandb run they find, so starting it here decides mode and folder. Offline, one
    line tells how to upload it later.

    Args:
        trainer: its run folder holds `recipe.json`; at every evaluation it has in `samples` what the model said, and in `tracked` the
            wandb run that it goes on with, if it does.
    """
    with ExitStack() as stack:
        if trainer.is_world_process_zero():
            if "tensorboard" in trainer.args.report_to:
                _in_the_run_folder(trainer)
            if "wandb" in trainer.args.report_to:
                stack.enter_context(_wandb(trainer))
            if "trackio" in trainer.args.report_to:
                stack.enter_context(_trackio(trainer))
            tables = Generations(trainer)
            trainer.add_callback(tables)
            stack.callback(trainer.remove_callback, tables)
        yield


def attach(trainer: Any, report: Path) -> None:
    """What there is at the end: scores before and after as the run's summary, the kept model's generations, the report as an artifact.

    To be called inside of `started`, once `metrics.json` and `samples.jsonl` are written.
    """
    if not trainer.is_world_process_zero():
        return
    lines = [line for line in trainer.run.read_lines("samples.jsonl") if line["stage"] == "after"]
    _log_table(trainer, lines)
    if "wandb" in trainer.args.report_to:
        import wandb

        tracked: Any = wandb.run
        metrics = trainer.run.read("metrics.json")
        kept = ("primary", "before", "after", "end", "best", "curves", "retain", "merge")
        tracked.summary.update({key: public(metrics[key]) for key in kept if key in metrics})
        if report.is_file():
            artifact = wandb.Artifact(f"report-{tracked.id}", type="report")
            artifact.add_file(str(report), policy="immutable")
            tracked.log_artifact(artifact)


class Generations(TrainerCallback):
    """A table of what the model said at every evaluation, until training ends.

    Args:
        trainer: as for `started`.
    """

    def __init__(self, trainer: Any):
        self.trainer, self.over = trainer, False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.over = True  # the kept model's are attached

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any) -> None:
        samples = getattr(self.trainer, "samples", None)
        if self.over or not samples or "eval_loss" not in (metrics or {}):
            return
        stage = {"stage": "during" if state.global_step else "before", "step": state.global_step}
        lines = [{**stage, **sample.as_dict(self.trainer.processing_class)} for sample in _spread(samples)]
        _log_table(self.trainer, lines)


def tabled(lines: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a table from lines of `samples.jsonl`, at most a hundred of them; a column for each score."""
    lines = _spread(lines)
    scores = list(dict.fromkeys(name for line in lines for name in line["scores"]))
    texts = ["step", "stage", "source", "asked", "reply"]
    rows = [
        [*(line.get(name) for name in texts), spoken(line["expected"]), *(line["scores"].get(name) for name in scores)] for line in lines
    ]
    return [*texts, "reference", *scores], rows


def _spread(lines: Sequence[Any]) -> Sequence[Any]:
    return lines[:: max(1, -(-len(lines) // ROWS))]


def recipe_of(trainer: Any) -> dict[str, Any]:
    """`recipe.json` without secrets; without the training arguments, which transformers adds, the tokens among them masked."""
    return public({key: value for key, value in trainer.run.read("recipe.json").items() if key != "config"})


def _log_table(trainer: Any, lines: Sequence[dict[str, Any]]) -> None:
    """Log `generations` to each tracker that has tables: they share one interface."""
    for name in ("wandb", "trackio"):
        if name in trainer.args.report_to:
            tracker: Any = import_module(name)
            if name == "trackio" and tracker.context_vars.current_run.get() is None:
                _take_up_trackio(trainer, resume="must")  # transformers ends it with the training
            columns, rows = tabled(lines)
            tracker.log({"generations": tracker.Table(columns=columns, data=rows), "train/global_step": trainer.state.global_step})


@contextmanager
def _wandb(trainer: Any) -> Iterator[None]:
    import wandb

    folder = trainer.run.folder
    folder.mkdir(parents=True, exist_ok=True)
    mode = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
    settings = wandb.Settings(
        silent=True,
        show_warnings=mode != "offline",
        console="off",
        x_disable_machine_info=bool(trainer.args.hub_token) or typed(sys.argv),  # which includes the command as it was typed
    )
    wandb.setup(settings)  # also silences what wandb says outside of a run
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "sft-recipes"),
        name=trainer.args.run_name,
        id=trainer.tracked,
        resume="allow" if trainer.tracked else None,
        dir=folder,
        mode=mode,  # type: ignore[arg-type]
        settings=settings,
        config={"recipe": recipe_of(trainer)},
    )
    trainer.tracked = run.id
    if mode == "offline":
        print(f"wandb is offline; to upload this run later: wandb sync {os.path.relpath(run.dir + '/..')}")
    try:
        yield
    finally:
        run.finish()


def _in_the_run_folder(trainer: Any) -> None:
    """Let tensorboard write there, and not into the working directory or among the checkpoints."""
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__name__ == "TensorBoardCallback" and callback.logging_dir is None:
            callback.logging_dir = str(trainer.run.folder / "tensorboard")


@contextmanager
def _trackio(trainer: Any) -> Iterator[None]:
    """A run of its own: transformers would go on with the newest of that name, which is an earlier training's."""
    import trackio

    _take_up_trackio(trainer, resume="allow" if trainer.continued_from else "never")
    trackio.log({"train/global_step": trainer.state.global_step})  # it is there once something is logged
    try:
        yield
    finally:
        if trackio.context_vars.current_run.get() is not None:
            trackio.finish()


def _take_up_trackio(trainer: Any, resume: str) -> None:
    import trackio

    args = trainer.args
    place = dict(project=args.project, name=args.run_name, space_id=args.trackio_space_id, bucket_id=args.trackio_bucket_id)
    trackio.init(**place, private=args.hub_private_repo, embed=False, resume=resume)


def logged_in() -> bool:
    """Whether a wandb key is at hand, without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
