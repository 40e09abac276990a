"""Every promise that can be checked before launch, all faults together. `build_trainer` runs the same checks."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch

from .config import Resolved
from .evaluate import judge
from .prepare import Part, Prepared, prepare
from .recipe import RecipeError
from .weights import count_parameters

HEADROOM = 0.5e9  # bytes for what is small: adapter, checkpoints, samples, the proof's record


@dataclass
class Report:
    """What was found: faults stop a run, warnings do not."""

    resolved: Resolved
    prepared: Prepared | None = None
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `check --json`."""
        names = {"recipe": self.resolved.name, "scale": self.resolved.scale}
        return {**names, "faults": self.faults, "warnings": self.warnings, "counts": self.counts}


def check(resolved: Resolved, train_dataset: Iterable[dict] | None = None, eval_dataset: Iterable[dict] | None = None) -> Report:
    """Check model, data, supervision, hooks and disk without loading the model's weights."""
    report = Report(resolved)
    recipe, config = resolved.recipe, resolved.config
    try:
        parameters = count_parameters(recipe.model)
        report.counts["parameters"] = parameters
        report.faults += disk_faults(Path(str(config.output_dir)), parameters * torch.finfo(getattr(torch, recipe.dtype)).bits // 8)
    except RecipeError as error:
        report.faults += error.faults
    try:
        prepared = prepare(resolved.trainer_class, recipe, config.max_length, train_dataset, eval_dataset)
    except RecipeError as error:
        report.faults += [fault for fault in error.faults if fault not in report.faults]
        return report
    report.prepared = prepared
    for name, part in (("train", prepared.train), ("held_out", prepared.held_out)):
        report.counts[name] = counts(part)
        if part.supervision.dropped:
            report.warnings.append(f"{len(part.supervision.dropped)} {name} conversations dropped: {part.supervision.dropped[0]} ...")
    report.counts["stop_tokens"] = prepared.tokenizer.convert_ids_to_tokens(sorted(prepared.stop_ids))
    report.warnings += reference_warnings(resolved, prepared)
    return report


def disk_faults(folder: Path, model_bytes: int) -> list[str]:
    """Whether the run's file system has room for the merged model, and is writable at all."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free, needed = shutil.disk_usage(existing).free, model_bytes + HEADROOM
    if free < needed:
        return [f"{folder}: {free / 1e9:.1f} GB free, the run needs {needed / 1e9:.1f} GB; make room or move it with --output_dir"]
    return []


def counts(part: Part) -> dict[str, Any]:
    """The account of one part, with percentiles of its row lengths in tokens."""
    lengths = sorted(len(row["input_ids"]) for row in part.rows)
    cuts = quantiles(lengths, n=100, method="inclusive") if len(lengths) > 1 else lengths * 99
    return {**part.supervision.as_dict(), "length": {"p50": round(cuts[49]), "p95": round(cuts[94]), "max": lengths[-1]}}


def reference_warnings(resolved: Resolved, prepared: Prepared) -> list[str]:
    """References that the recipe's own `parse` and `score` would not call right: no model could score on them."""
    primary, hooks = resolved.recipe.primary, resolved.trainer_class
    turns = [turn.completion_ids for turns in prepared.held_out.turns for turn in turns]
    samples = judge(prepared.questions, turns, prepared.tokenizer, prepared.stop_ids, hooks.parse, hooks.score)
    wrong = [s for s in samples if s.scores.get(primary, 1.0) < 1.0]
    if not wrong:
        return []
    first = wrong[0].question
    return [f"{len(wrong)} of {len(samples)} references do not score 1 on {primary}, first: {first.source}, message {first.message_index}"]


def plan(report: Report) -> dict[str, Any]:
    """Tokens per step, steps, and the size of the weights; from counts, nothing is measured.

    Raises:
        RecipeError: the check found faults.
    """
    if report.faults or report.prepared is None:
        raise RecipeError(*report.faults)
    recipe, config = report.resolved.recipe, report.resolved.config
    train, rows_per_step = report.counts["train"], config.train_batch_size * config.gradient_accumulation_steps
    steps = config.max_steps if config.max_steps > 0 else int(-(-train["rows"] // rows_per_step) * config.num_train_epochs)
    bits = 4.5 if recipe.quantization is not None else torch.finfo(getattr(torch, recipe.dtype)).bits
    return {
        "parameters": report.counts["parameters"],
        "weights_gb": report.counts["parameters"] * bits / 8 / 1e9,
        "rows_per_step": rows_per_step,
        "tokens_per_step": round(train["tokens"] / train["rows"] * rows_per_step),
        "supervised_tokens_per_step": round(train["supervised_tokens"] / train["rows"] * rows_per_step),
        "steps": steps,
    }
