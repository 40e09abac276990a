"""Every promise that can be checked before launch, all faults together. `build_trainer` runs the same checks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import refuse_full, written
from ..config import Resolved
from ..engines import launched, unparted
from ..evaluate import judge
from ..optim.groups import account, parameter_groups
from ..prepare import Part, Prepared, prepare
from ..recipe import RecipeError
from ..rows import fitting
from ..weights import refuse_another, unweighted
from ..weights.skeleton import adapted
from . import advice, diversity, duplicates, steps, streamed, together
from .layouts import Abilities, Layout, abilities, choose
from .lengths import Batching, padding_warnings, percentiles
from .omitted import lost

SAMPLE = 20_000  # conversations of each part that `check` supervises unless told to take all
PARTS = ("train", "held_out")
ENOUGH = 0.95  # of the replay that was asked for


@dataclass
class Report:
    """What was found: faults stop a run, warnings do not."""

    resolved: Resolved
    prepared: Prepared | None = None
    layout: Layout | None = None
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
    able = None
    report.faults += together.faults(recipe, config, launched(config), torch.cuda.device_count())
    report.faults += streamed.faults(recipe, config)
    try:
        with unparted():
            model = unweighted(recipe.model, recipe.revision)
        able = abilities(model, recipe.adapter, config)
        parameters = sum(p.numel() for p in model.parameters())
        report.counts["parameters"] = parameters
    except RecipeError as error:
        report.faults += error.faults
    else:
        report.faults += _around(report, model)
    report.warnings += advice.warnings(recipe, config, report.counts.get("parameters")) + quantised_anew(resolved)
    try:
        report.prepared = prepare(resolved.trainer_class, recipe, config.max_length, train_dataset, eval_dataset, sample)
    except RecipeError as error:
        report.faults += [fault for fault in error.faults if fault not in report.faults]
        return report
    try:
        _look_at(report, report.prepared)
    except RecipeError as error:
        report.faults += error.faults
    if able:
        _lay_out(report, report.prepared, able)
    return report


def _around(report: Report, model: Any) -> list[str]:
    """Faults of what is trained of a model, of the base under an adapter, and of the disk that all of it is to go to."""
    resolved, faults = report.resolved, []
    for work in (
        lambda: _trained(report, model),
        lambda: _on_its_base(resolved),
        lambda: refuse_full(Path(str(resolved.config.output_dir)), written(model, resolved.recipe, resolved.config)["in_all"], "the run"),
    ):
        try:
            work()
        except RecipeError as error:
            faults += error.faults
    return faults


def _trained(report: Report, model: Any) -> None:
    """The groups of the optimiser; the model has its adapter from here on. A warning where one cannot be made without weights, which is
    no fault of the recipe's; its checkpoints cannot be counted then.

    Raises:
        RecipeError: the adapter fits nothing, or has nothing that LoRA+ could speed up.
    """
    recipe, config = report.resolved.recipe, report.resolved.config
    try:
        whole = adapted(model, recipe)
        groups = parameter_groups(whole, config.weight_decay, config.learning_rate, recipe.loraplus_lr_ratio)
    except (RecipeError, ValueError) as error:
        model.requires_grad_(recipe.adapter is None)
        raise RecipeError(*str(error).splitlines()) from error
    except Exception as error:
        model.requires_grad_(False)
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        report.warnings.append(f"what is trained can be listed only with the weights ({reason})")
        return
    report.counts["optimizer"] = account(whole, groups, config.learning_rate)


def _on_its_base(resolved: Resolved) -> None:
    """Whether an adapter that is to be trained on was trained on this base.

    Raises:
        RecipeError: it was not.
    """
    if resolved.origin and resolved.origin["part"] == "adapter":
        refuse_another(Path(resolved.origin["run"]) / "adapter", resolved.recipe)


def quantised_anew(resolved: Resolved) -> list[str]:
    """A warning where a run starts from a deployed model that it quantises: that rounds off part of what was learned."""
    origin, recipe = resolved.origin, resolved.recipe
    if origin is None or origin["part"] != "merged" or recipe.quantization is None:
        return []
    run = Path(origin["run"])
    other = (
        f"; --from {run}/adapter starts at exactly what was trained" if (run / "adapter").is_dir() and recipe.adapter is not None else ""
    )
    return [f"start_from {recipe.start_from}: what it deployed is quantised anew, so training starts at a somewhat worse model{other}"]


def _look_at(report: Report, prepared: Prepared) -> None:
    """Counts of what was prepared, and warnings about it."""
    config = report.resolved.config
    if prepared.stream:
        report.counts["stream"] = {"whole": prepared.stream.whole}
    batching = {"train": Batching.training(config), "held_out": Batching.evaluation(config)}
    for name, part in (("train", prepared.train), ("held_out", prepared.held_out)):
        report.counts[name] = counts(part, batching[name], config.max_length)
        faults, warnings = lost(name, part, report.resolved.recipe.max_lost if name == "train" else 1.0)
        report.faults += faults
        report.warnings += warnings
    _to_be_kept(report, prepared)
    report.counts["stop_tokens"] = prepared.tokenizer.convert_ids_to_tokens(sorted(prepared.stop_ids))
    copies = duplicates.find(prepared.train.conversations, prepared.held_out.conversations)
    report.counts["duplicates"] = copies.as_dict()
    varied = {name: diversity.measure(part.conversations) for name, part in zip(PARTS, (prepared.train, prepared.held_out), strict=True)}
    report.counts["diversity"] = {name: found.as_dict() for name, found in varied.items()}
    report.warnings += copies.warnings() + varied["train"].warnings() + reference_warnings(report.resolved, prepared)


def _lay_out(report: Report, prepared: Prepared, able: Abilities) -> None:
    """The layout of the training rows, what it costs beside others, and the steps it makes."""
    recipe, config, supervised = report.resolved.recipe, report.resolved.config, prepared.supervised_tokens
    rows, part = prepared.rows, prepared.train
    try:
        layout = report.layout = choose(recipe, config, rows, supervised, able)
    except RecipeError as error:
        report.faults += error.faults
        return
    share = len(part.conversations) / part.read
    found, without = steps.counted(layout, rows, supervised, config, share)
    report.counts["layout"] = layout.counts(supervised)
    report.counts["steps"] = {
        "estimated": share < 1 or bool(prepared.stream and not prepared.stream.whole),
        "with_layout": found.as_dict(),
        "without_packing": without.as_dict(),
    }
    report.warnings += steps.warnings(recipe, config, rows, found, without)
    if layout.packed is None:
        report.warnings += padding_warnings([len(row["input_ids"]) for row in rows], config, able.obstacle)


def _to_be_kept(report: Report, prepared: Prepared) -> None:
    """Counts of the data to be kept: what is measured of them, and what is replayed."""
    if prepared.retained is None:
        return
    account, replay = prepared.retained.supervision, prepared.replay
    report.counts["retained"] = {"conversations": account.conversations, "supervised_tokens": account.supervised_tokens}
    if replay:
        report.counts["replayed"] = replay
        if replay["share"] < ENOUGH * replay["mix"]:
            taken = f"{replay['supervised_tokens']:,} tokens of {replay['conversations']:,} conversations or texts"
            report.warnings.append(f"mix is {replay['mix']:g}, and all that `retain` has, {taken}, is {replay['share']:.1%}")


def counts(part: Part, batching: Batching, max_length: int | None) -> dict[str, Any]:
    """The account of one part: conversations here and in its source, tokens, percentiles of lengths in tokens, padding.

    `length` is that of separate rows, `completion_length` of turns from the first learned token to the stop token; `padding` is the
    share of pad positions in batches of separate rows.
    """
    lengths, trained = row_lengths(part), {row["source"] for row in part.rows}
    kept = (turns for c, turns in zip(part.conversations, part.turns, strict=True) if c["source"] in trained)
    return {
        **part.supervision.as_dict(),
        "in_source": part.read,
        "length": percentiles(lengths),
        "completion_length": percentiles([len(turn.completion_ids) for turns in kept for turn in fitting(turns, max_length)]),
        "padding": round(batching.padding(lengths), 4),
    }


def row_lengths(part: Part) -> list[int]:
    """Tokens of each row."""
    return [len(row["input_ids"]) for row in part.rows]


def reference_warnings(resolved: Resolved, prepared: Prepared) -> list[str]:
    """References that, read back from their own tokens, `score` would not call right: no model could score on them."""
    primary, hooks = resolved.recipe.primary, resolved.trainer_class
    turns = [turn.completion_ids for turns in prepared.held_out.turns for turn in turns]
    samples = judge(prepared.questions, turns, prepared.tokenizer, prepared.stop_ids, hooks.score)
    wrong = [s for s in samples if primary not in s.manner and s.scores.get(primary, 1.0) < 1.0]
    if not wrong:
        return []
    first = wrong[0].question
    return [f"{len(wrong)} of {len(samples)} references do not score 1 on {primary}, first: {first.source}, message {first.message_index}"]
