"""What a person sees in the terminal. Everything here prints and decides nothing."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from .ablation import Comparison, over_steps, parts
from .config import Resolved
from .excerpt import contrasted, excerpt
from .preflight import PARTS, Report, tables
from .prepare import Prepared
from .public import public
from .recipe import RecipeError
from .scores import LOWER, MANNER
from .show.listing import CONTEXT, coloured, legend, shifted
from .show.page import write_page
from .show.view import Reader

out = Console(highlight=False, quiet=os.environ.get("RANK", "0") != "0")  # of several processes, the first speaks


def print_start(resolved: Resolved) -> None:
    """One sentence when `auto` chose the tiny scale."""
    if resolved.remark:
        out.print(resolved.remark, soft_wrap=True)


def print_report(report: Report) -> None:
    """The account of a check, then warnings, faults and the verdict."""
    if "duplicates" in report.counts:
        out.print(tables.account(report.counts), tables.lengths(report.counts), sep="\n")
        if "layout" in report.counts:
            out.print(tables.layouts(report.counts), tables.chosen(report.counts["layout"]), tables.steps(report.counts), sep="\n")
        if "optimizer" in report.counts:
            out.print(tables.groups(report.counts["optimizer"]))
    for line in _sampled(report):
        out.print(Text(line, "yellow"), soft_wrap=True)
    for warning in report.warnings:
        out.print(Text.assemble(("warning: ", "bold yellow"), warning), soft_wrap=True)
    for fault in report.faults:
        out.print(Text.assemble(("fault: ", "bold red"), public(fault)), soft_wrap=True)
    if not report.faults:
        stops = " ".join(report.counts["stop_tokens"])
        out.print(Text.assemble(("check passed", "bold green"), f"; turns end in {stops}"), soft_wrap=True)


def _sampled(report: Report) -> list[str]:
    """What the counts leave out, where they do."""
    found, counts = [], report.counts
    if counts.get("stream") and not counts["stream"]["whole"]:
        found.append(f"a stream: its first {counts['train']['in_source']:,} conversations were read; the others are checked when they come")
    for part, name in zip(PARTS, ("", "held-out "), strict=True):
        c = counts.get(part)
        if c and c["conversations"] < c["in_source"]:
            found.append(f"sampled {c['conversations']:,} of {c['in_source']:,} {name}conversations; --all reads everything")
    copies = counts.get("duplicates")
    if copies and copies["near_compared"] < copies["distinct"]:
        found.append(f"near duplicates looked for in {copies['near_compared']:,} of {copies['distinct']:,} different train conversations")
    return found


def print_row(prepared: Prepared, number: int, html: Path | None) -> None:
    """One training row: its text with the supervised tokens coloured, then ids and labels after the causal shift.

    Args:
        prepared: holds the very rows that the trainer gets.
        number: which training row, from 0.
        html: write a page with this row and those after it to this file instead.

    Raises:
        RecipeError: there is no such row, or the file cannot be written.
    """
    rows = prepared.rows
    if not 0 <= number < len(rows):
        raise RecipeError(f"--row {number}: there are {len(rows)} training rows, 0 to {len(rows) - 1}")
    reader = Reader(prepared.tokenizer, prepared.stop_ids)
    if html:
        last = write_page(reader, rows, number, html)
        out.print(f"rows {number} to {last} of {len(rows):,} written to {html}", soft_wrap=True)
        return
    tokens, in_colour = reader.tokens(rows[number]), bool(out.color_system) and not out.no_color
    learned = sum(token.learned for token in tokens)
    told = f"row {number} of {len(rows):,}, {rows[number]['source']}: {learned:,} of {len(tokens):,} tokens supervised"
    out.print(Text(f"{told} ({learned / len(tokens):.1%})"), soft_wrap=True)
    out.print(legend(in_colour), coloured(reader, tokens, in_colour), "", sep="\n")
    table, shown = shifted(tokens)
    some = f": {shown:,} of {len(tokens):,} positions, --html FILE has all" if shown < len(tokens) else ""
    out.print(Text(f"After the causal shift{some}"), table, sep="\n")


def print_scores(scores: dict[str, Any]) -> None:
    """Names and values, one a line."""
    width = max(map(len, scores))
    for name, value in scores.items():
        out.print(Text(f"{name:<{width}}  {_score(name, value)}"))


def _score(name: str, value: Any) -> str:
    return f"{value:.1f}" if name.removeprefix("eval_") == "length" else _number(value)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def print_arm(name: str, arms: Sequence[str]) -> None:
    """The heading of what follows, where an ablation has several arms."""
    if len(arms) > 1:
        out.print(Text(f"\narm {list(arms).index(name) + 1} of {len(arms)}: {name}", "bold"), soft_wrap=True)


def print_ablation(found: Comparison) -> None:
    """The arms side by side: the primary score over the steps, and its sub-scores after training, where it has any."""
    primary = found["primary"].removeprefix("eval_")
    out.print(Text(f"\n{primary} on held-out data, while training", "bold"), _side_by_side("step", found, over_steps(found)), sep="\n")
    if divided := parts(found):
        out.print(Text(f"\n{primary} on held-out data, after training", "bold"), _side_by_side("", found, divided), sep="\n")


def _side_by_side(key: str, found: Comparison, rows: Sequence[tuple[int | str, list[float | None]]]) -> Table:
    columns = (Column(Text(name), justify="right", overflow="fold", min_width=5) for name in found["arms"])
    table = Table(Column(key, style=CONTEXT, justify="right"), *columns, box=None, pad_edge=False)
    for name, values in rows:
        shown = f"{name:,}" if isinstance(name, int) else name
        table.add_row(Text(shown), *("-" if value is None else _score(found["primary"], value) for value in values))
    return table


def print_compared(scores: Mapping[str, Mapping[str, float]]) -> None:
    """The scores of several models: a line per score, a column per model, the best of each line bold."""
    columns = (Column(Text(name), justify="right", overflow="fold", min_width=5) for name in scores)
    table = Table(Column("held-out", no_wrap=True), *columns, box=None, pad_edge=False)
    for name in dict.fromkeys(name for found in scores.values() for name in found):
        values = [found.get(name) for found in scores.values()]
        known = [value for value in values if value is not None]
        best = None if name == "length" else min(known) if name.endswith("loss") or name in LOWER else max(known)
        table.add_row(name, *("-" if v is None else Text(_score(name, v), "bold" if v == best else "") for v in values))
    out.print(table)


SUMMARY_LINES, SCORES_SHOWN = 20, 5


def print_summary(summary: dict[str, Any]) -> None:
    """The end of a run in twenty lines of eighty columns: scores, what was kept, overfitting, forgetting, generations, proof, what next.

    The generations get the lines that are left, one at least, three at most.
    """
    said = [*_judged(summary)]
    end = [*_proven(summary["merge"]), *_next(summary)]
    taken = 1 + _scores_shown(summary) + sum(len(out.render_lines(line)) for line in said + end)
    out.print(_before_and_after(summary), *said, sep="\n")
    for sample in summary["samples"][: max(1, (SUMMARY_LINES - taken) // 2)]:
        _print_generation(sample)
    out.print(*end, sep="\n")


def _judged(summary: dict[str, Any]) -> list[Text]:
    """Which checkpoint was kept and why, whether it overfits, what it forgot; in yellow where a person should look twice."""
    best, curves, retain = (summary.get(key) or {} for key in ("best", "curves", "retain"))
    sentences = [
        (best.get("said"), 3, best.get("agree") is False),
        (curves.get("said"), 3, bool(curves.get("overfitting"))),
        (curves.get("hint"), 3, True),
        (retain.get("said"), 2, retain.get("rise", 0) > retain.get("max_rise", math.inf)),
    ]
    return [Text(excerpt(said, lines * out.width - 10), "yellow" if alarming else "") for said, lines, alarming in sentences if said]


def _whole_scores(summary: dict[str, Any]) -> list[str]:
    """The scores with a line of their own, in order: the primary and the loss always, no parts of a score, not many."""
    after, primary = summary["after"], summary["primary"]
    own = [name for name in after if name not in MANNER or name == primary]
    whole = [name for name in own if not any(name.startswith(f"{other}_") for other in own)]
    first = sorted(whole, key=lambda name: (name != primary, name != "eval_loss"))[:SCORES_SHOWN]
    return [name for name in whole if name in first]


def _scores_shown(summary: dict[str, Any]) -> int:
    """Lines of the table below its heading."""
    return max(len(_whole_scores(summary)) + bool(summary.get("retain")), len([name for name in MANNER if name in summary["after"]]))


def _before_and_after(summary: dict[str, Any]) -> Table:
    """The scores, with what was forgotten below them; beside both, how the replies are said."""
    before, after, primary = summary["before"], summary["after"], summary["primary"]
    left = [_compared(name, before.get(name), after[name], "bold" if name == primary else "") for name in _whole_scores(summary)]
    if retain := summary.get("retain"):
        left.append(_compared("retain loss", retain.get("before", {}).get("loss"), retain.get("after", {}).get("loss"), ""))
    right = [_compared(name, before.get(name), after[name], "") for name in MANNER if name in after and name != primary]
    columns = ["held-out", "before", "after", *(["  manner", "before", "after"] if right else [])]
    table = Table(*(Column(name, no_wrap=True) for name in columns), box=None, pad_edge=False)
    for scores, manner in zip_longest(left, right, fillvalue=[Text()] * 3):
        table.add_row(*scores, *([Text("  ") + manner[0], *manner[1:]] if right else []))
    return table


def _compared(name: str, before: float | None, after: float | None, style: str) -> list[Text]:
    shown = ["-" if value is None else _score(name, value) for value in (before, after)]
    return [Text(excerpt(name, 30), style), Text(shown[0]), Text(shown[1], style)]


def _print_generation(sample: dict[str, Any]) -> None:
    """What was asked and what came back, a line each."""
    label, style = {True: ("right", "green"), False: ("wrong", "red"), None: ("reply", "")}[sample["right"]]
    columns = out.width - len("asked  ")
    reply = contrasted(sample["reply"], sample["reference"], columns)[0] if label == "wrong" else excerpt(sample["reply"], columns)
    out.print(Text.assemble(("asked  ", CONTEXT), (excerpt(sample["asked"], columns, last=True), CONTEXT)))
    out.print(Text.assemble((f"{label}  ", CONTEXT), (reply, style)))


def _proven(proof: dict[str, Any]) -> list[Text]:
    """In two or three lines that the deployed folder is the trained model, or why it is not."""
    if proof.get("faults"):
        return [Text(excerpt("; ".join(proof["faults"]), 3 * out.width - 15), "red")]
    if "kl" not in proof:
        return []
    loss = f" loss {proof['loss']:.4f}, trained {proof['trained_loss']:.4f};" if "loss" in proof else ""
    equal = "equal" if proof["generations_equal"] else "not all equal"
    said = f"KL {proof['kl']:.1e} per token, at most {proof['max_kl']:.1e};{loss} {proof['generations']} generations {equal}"
    return [Text(f"Deployed = trained, in a fresh process: {said}, {proof['stops']:.0%} stop by themselves.")]


def _next(summary: dict[str, Any]) -> list[Text]:
    """Where everything is, and what to type."""
    proof, page = summary["merge"], summary.get("report")
    read = Text(", and open ").append(page, "bold") if page else Text()
    if not proof or proof.get("faults"):  # it was refused, or stopped on the way
        command = Text(f"make merge RUN={summary['run']}", "bold")
        return [Text.assemble(("Not deployed. ", "bold red"), "Next: ", command, read)]
    deployed = Text("Deployable folder: ").append(summary["merged"], "bold")
    return [deployed, Text.assemble("Next: ", (f"make chat RUN={summary['run']}", "bold"), read)]


def print_proof(proof: dict[str, Any]) -> None:
    """That the deployed folder is the trained model, in numbers; where it says something else first; and other bases' numbers."""
    several = len(proof["bases"]) > 1 or proof["base"] == "original"
    subject = f"Merged into the {proof['base']} base and" if several else "The deployed folder,"
    if "kl" in proof:
        equal = "equal" if proof["generations_equal"] else "not all equal"
        out.print(
            f"{subject} reloaded in a fresh process: KL {proof['kl']:.1e} per supervised token to the trained model, at most "
            f"{proof['max_kl']:.1e}; held-out loss {proof['loss']:.4f}, trained {proof['trained_loss']:.4f}; {proof['generations']} "
            f"generations {equal}, {proof['stops']:.0%} stop by themselves, trained {proof['trained_stops']:.0%}; {proof['prompts']} "
            "training prompts rendered to the same ids."
        )
    if different := proof.get("first_difference"):
        for name in ("prompt", "trained", "deployed"):
            out.print(Text.assemble((f"{name:<9}", CONTEXT), different[name][-200:].strip()))
    for base, found in proof["bases"].items():
        if base != proof["base"] and "kl" in found:
            numbers = f"KL {found['kl']:.1e}, at most {found['max_kl']:.1e}; held-out loss {found['loss']:.4f}"
            out.print(f"Merged into the {base} base: {numbers}.")
