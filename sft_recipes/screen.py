"""What a person sees in the terminal. Everything here prints and decides nothing."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .config import Resolved
from .preflight import Report
from .prepare import Prepared
from .recipe import RecipeError
from .rows import IGNORED

LEARNED, CONTEXT = "#000000 on #8fdc8f", "dim"
out = Console(highlight=False, quiet=os.environ.get("RANK", "0") != "0")  # of several processes, the first speaks


def print_start(resolved: Resolved) -> None:
    """One sentence when `auto` chose the tiny scale."""
    if resolved.remark:
        out.print(resolved.remark, soft_wrap=True)


def print_report(report: Report) -> None:
    """Faults, warnings and counts of a check."""
    for fault in report.faults:
        out.print(Text("fault: ", "bold red") + Text(fault), soft_wrap=True)
    for warning in report.warnings:
        out.print(Text("warning: ", "yellow") + Text(warning), soft_wrap=True)
    for part in ("train", "held_out"):
        if part in report.counts:
            out.print(_account(part, report.counts[part]), soft_wrap=True)
    if not report.faults:
        out.print(Text("check passed", "green") + Text(f"; turns end in {' '.join(report.counts['stop_tokens'])}"))


def _account(part: str, c: dict[str, Any]) -> str:
    return (
        f"{part.replace('_', '-'):>8}: {c['conversations']:,} conversations, {c['turns']:,} turns, {c['supervised_tokens']:,} of "
        f"{c['tokens']:,} tokens supervised ({c['supervised_share']:.0%}), rows up to {c['length']['max']:,} tokens"
    )


def print_row(prepared: Prepared, number: int, html: Path | None) -> None:
    """One training row: its text with the supervised tokens coloured, then ids and labels after the causal shift.

    Raises:
        RecipeError: there is no such row.
    """
    rows = prepared.train.rows
    if not 0 <= number < len(rows):
        raise RecipeError(f"--row {number}: there are {len(rows)} training rows, 0 to {len(rows) - 1}")
    row = rows[number]
    console = Console(record=True, file=io.StringIO(), width=120, highlight=False) if html else out
    learned = sum(label != IGNORED for label in row["labels"])
    console.print(f"row {number} of {len(rows)}, {row['source']}: {learned} of {len(row['labels'])} tokens supervised", soft_wrap=True)
    console.print(_coloured(prepared.tokenizer, row))
    console.print(_shifted(prepared.tokenizer, row))
    if html:
        console.save_html(str(html))
        out.print(f"written to {html}")


def _coloured(tokenizer: Any, row: dict[str, Any]) -> Text:
    """The whole row; neighbouring tokens of one kind are decoded together, so that no character is torn apart."""
    text, start, labels = Text(), 0, row["labels"]
    for end in range(1, len(labels) + 1):
        if end == len(labels) or (labels[end] == IGNORED) != (labels[start] == IGNORED):
            style = CONTEXT if labels[start] == IGNORED else LEARNED
            text.append(tokenizer.decode(row["input_ids"][start:end]), style)
            start = end
    return text


def _shifted(tokenizer: Any, row: dict[str, Any], around: int = 2) -> Table:
    """What each position predicts, around the supervised tokens."""
    ids, targets = row["input_ids"], [*row["labels"][1:], IGNORED]
    table = Table("position", "id", "token", "learns to say", "label", box=None, pad_edge=False)
    near = {j for i, t in enumerate(targets) if t != IGNORED for j in range(i - around, i + around + 1)}
    for position in sorted(near & set(range(len(ids)))):
        target = targets[position]
        said = "" if target == IGNORED else _visible(tokenizer.decode([target]))
        token = _visible(tokenizer.decode([ids[position]]))
        table.add_row(str(position), str(ids[position]), Text(token), Text(said, LEARNED if said else ""), str(target))
        if position + 1 not in near:
            table.add_row("...")
    return table


def _visible(token: str) -> str:
    """A token with its line breaks escaped and its spaces as dots."""
    return repr(token)[1:-1].replace(" ", "·")


def print_scores(scores: dict[str, Any]) -> None:
    """Names and values, one a line."""
    width = max(map(len, scores))
    for name, value in scores.items():
        out.print(Text(f"{name:<{width}}  {_number(value)}"))


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def print_summary(summary: dict[str, Any]) -> None:
    """The end of a run: scores before and after, three generations, the proof, and what to type next."""
    table = Table("held-out", "before", "after", box=None, pad_edge=False)
    for name, after in summary["after"].items():
        table.add_row(name, _number(summary["before"][name]), Text(_number(after), "bold" if name == summary["primary"] else ""))
    out.print(table)
    for sample in summary["samples"]:
        said = Text("\n").join([Text(sample["asked"], CONTEXT), Text(sample["reply"], "green" if sample["right"] else "red")])
        out.print(Panel(said, title=Text(f"{sample['source']}"), title_align="left", border_style="dim"))
    proof = summary["merge"]
    equal = "equal" if proof["generations_equal"] else "not all equal"
    out.print(
        f"The merged model, reloaded in a fresh process: KL {proof['kl']:.1e} per supervised token to the trained one, "
        f"{proof['generations']} generations {equal}."
    )
    out.print(Text("Deployable folder: ").append(summary["merged"], "bold"))
    out.print(Text("Next: ").append(f"make chat RUN={summary['run']}", "bold"))
