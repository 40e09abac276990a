"""Every promise that can be checked before launch, all faults together. `build_trainer` runs the same checks."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..attention.sharing import obstacle
from ..config import Resolved
from ..evaluate import judge
from ..optim.groups import account, parameter_groups
from ..prepare import Part, Prepared, prepare
from ..recipe import RecipeError
from ..rows import Supervision, fitting
from ..weights import unweighted
from ..weights.skeleton import adapted
from . import advice, duplicates, layouts
from .lengths import Batching, packed_padding, padding_warnings, percentiles

SAMPLE = 20_000  # conversations of each part that `check` supervises unless told to take all
PARTS = ("train", "held_out")
HEADROOM = 0.5e9  # bytes for what is small: adapter, checkpoints, samples, the proof's record


@dataclass
class Report:
    """What was found: faults stop a run, warnings do not."""

    resolved: Resolved
    prepared: Prepared | None = None
    layout: layouts.Layout | None = None
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)

    @property
    def sampled(self) -> bool:
        """Whether the counts are of a sample."""
        return any(c["conversations"] < c["in_source"] for c in (self.counts.get(p, {}) for p in PARTS) if c)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `check --json`."""
        names = {"recipe": self.resolved.name, "scale": self.resolved.scale}
        return {**names, "faults": self.faults, "warnings": self.warnings, "sampled": self.sampled, "counts": self.counts}


def check(
    resolved: Resolved,
    train_dataset: Iterable[dict] | None = None,
    eval_dataset: Iterable[dict] | None = None,
    sample: int | None = None,
) -> Report:
    """Check model, settings, data, supervision, hooks and disk without loading the model's weights.

    Args:
        resolved: the recipe, from `config.resolve`.
        train_dataset, eval_dataset: rows in memory that stand in for the recipe's own data.
        sample: supervise at most this many conversations of each part; `None` takes all, as training needs.
    """
    report = Report(resolved)
    recipe, config = resolved.recipe, resolved.config
    hindered = ""
    try:
        model = unweighted(recipe.model)
        hindered = obstacle(model, recipe.adapter)
        parameters = sum(p.numel() for p in model.parameters())
        report.counts["parameters"] = parameters
        report.faults += disk_faults(Path(str(config.output_dir)), parameters * torch.finfo(getattr(torch, recipe.dtype)).bits // 8)
        _trained(report, model)
    except RecipeError as error:
        report.faults += error.faults
    report.warnings += advice.warnings(recipe, config, report.counts.get("parameters"))
    try:
        report.prepared = prepare(resolved.trainer_class, recipe, config.max_length, train_dataset, eval_dataset, sample)
    except RecipeError as error:
        report.faults += [fault for fault in error.faults if fault not in report.faults]
        return report
    try:
        report.layout = layouts.choose(recipe, config, report.prepared.train.rows, hindered)
    except RecipeError as error:
        report.faults += error.faults
    _look_at(report, report.prepared)
    return report


def _trained(report: Report, model: Any) -> None:
    """The groups of the optimiser; a warning where an adapter cannot be made without weights, which is no fault of the recipe's.

    Raises:
        RecipeError: the adapter fits nothing, or has nothing that LoRA+ could speed up.
    """
    recipe, config = report.resolved.recipe, report.resolved.config
    try:
        model = adapted(model, recipe)
        groups = parameter_groups(model, config.weight_decay, config.learning_rate, recipe.loraplus_lr_ratio)
    except (RecipeError, ValueError) as error:
        raise RecipeError(*str(error).splitlines()) from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        report.warnings.append(f"what is trained can be listed only with the weights ({reason})")
        return
    report.counts["optimizer"] = account(model, groups, config.learning_rate)


def _look_at(report: Report, prepared: Prepared) -> None:
    """Counts of what was prepared, and warnings about it."""
    config, lengths = report.resolved.config, row_lengths(prepared.train)
    batching = {"train": Batching.training(config), "held_out": Batching.evaluation(config)}
    for name, part in (("train", prepared.train), ("held_out", prepared.held_out)):
        report.counts[name] = counts(part, batching[name], config.max_length)
        faults, warnings = lost(name, part, report.resolved.recipe.max_lost if name == "train" else 1.0)
        report.faults += faults
        report.warnings += warnings
    report.counts["stop_tokens"] = prepared.tokenizer.convert_ids_to_tokens(sorted(prepared.stop_ids))
    copies = duplicates.find(prepared.train.conversations, prepared.held_out.conversations)
    report.counts["duplicates"] = copies.as_dict()
    report.warnings += copies.warnings() + padding_warnings(lengths, config) + reference_warnings(report.resolved, prepared)


def disk_faults(folder: Path, model_bytes: int) -> list[str]:
    """Whether the run's file system has room for the merged model, and is writable at all."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free, needed = shutil.disk_usage(existing).free, model_bytes + HEADROOM
    if free < needed:
        return [f"{folder}: {free / 1e9:.1f} GB free, the run needs {needed / 1e9:.1f} GB; make room or move it with --output_dir"]
    return []


def counts(part: Part, batching: Batching, max_length: int | None) -> dict[str, Any]:
    """The account of one part: conversations here and in its source, tokens, percentiles of lengths in tokens, padding shares.

    `length` is that of rows, `completion_length` of turns from the first learned token to the stop token; `padding` is the share
    of pad positions in the batches as they are and in rows packed into `max_length`.
    """
    lengths, trained = row_lengths(part), {row["source"] for row in part.rows}
    kept = [turns for c, turns in zip(part.conversations, part.turns, strict=True) if c["source"] in trained]
    return {
        **part.supervision.as_dict(),
        "in_source": part.read,
        "length": percentiles(lengths),
        "completion_length": percentiles([len(turn.completion_ids) for turns in kept for turn in fitting(turns, max_length)]),
        "padding": {"unpacked": round(batching.padding(lengths), 4), "packed": round(packed_padding(lengths, max_length), 4)},
    }


def row_lengths(part: Part) -> list[int]:
    """Tokens of each row."""
    return [len(row["input_ids"]) for row in part.rows]


def lost(name: str, part: Part, max_lost: float) -> tuple[list[str], list[str]]:
    """Faults and warnings, one line each, about conversations that are too long or have nothing to learn; the counts list them all.

    Args:
        name: of the part, `train` or `held_out`.
        max_lost: share of the part's supervised tokens above which their loss is a fault, 0 to 1.
    """
    account, said = part.supervision, f"{len(part.conversations):,} {name.replace('_', '-')} conversations"
    long = [_too_long(account, said, max_lost)] if account.trimmed or account.dropped else []
    idle = f'{len(account.unsupervised):,} of {said} teach nothing, every assistant message has "train": false'
    warnings = [f"{idle}: {_first(account.unsupervised)}"] if account.unsupervised else []
    return (long, warnings) if account.lost_share > max_lost else ([], long + warnings)


def _too_long(account: Supervision, said: str, max_lost: float) -> str:
    """How many of the conversations are too long, what that costs, what helps, and the first places."""
    places, became = account.trimmed + account.dropped, {"trimmed": account.trimmed, "dropped whole": account.dropped}
    text = f"{len(places):,} of {said} are too long ({', '.join(f'{len(found):,} {what}' for what, found in became.items() if found)})"
    text += f", {account.lost_share:.2%} of the supervised tokens are lost"
    ways = f"--max_length {account.longest} keeps all"
    if account.lost_share > max_lost:
        text += f", max_lost is {max_lost:.2%}"
        ways += f", --max_lost {math.ceil(account.lost_share * 100) / 100:g} allows it"
    return f"{text}; {ways}: {_first(places)}"


def _first(places: list[str], shown: int = 3) -> str:
    more = f"; and {len(places) - shown:,} more, listed by check --json" if len(places) > shown else ""
    return "; ".join(places[:shown]) + more


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
