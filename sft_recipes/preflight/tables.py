"""The counts of a check as tables for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from ..show.listing import CONTEXT
from .report import PARTS

_LOST = (("trimmed", "too long, trimmed"), ("dropped", "too long, dropped"), ("unsupervised", "nothing to learn"))


def account(counts: dict[str, Any]) -> Table:
    """Both parts side by side; what is lost has a line only where something is."""
    table = _numbers("", [part.replace("_", "-") for part in PARTS])
    parts, copies = [counts[part] for part in PARTS], counts["duplicates"]
    table.add_row("conversations", *(f"{c['conversations']:,}" for c in parts))
    for loss, name in _LOST:
        if any(c[loss] for c in parts):
            table.add_row(name, *(f"{len(c[loss]):,}" for c in parts), style="yellow")
    table.add_row("turns in rows", *(f"{c['turns']:,} in {c['rows']:,}" for c in parts))
    table.add_row("supervised tokens", *(f"{c['supervised_tokens']:,} of {c['tokens']:,} ({c['supervised_share']:.0%})" for c in parts))
    for name, words in (("retained", "measured to be kept"), ("replayed", "replayed beside")):
        if kept := counts.get(name):
            share = f" ({kept['share']:.0%})" if "share" in kept else ""
            table.add_row(words, f"{kept['conversations']:,} with {kept['supervised_tokens']:,} tokens{share}", "")
    repeated, leaked = (f"{copies[p]['exact']:,} exact, {copies[p]['near']:,} near" for p in ("train", "held_out_in_train"))
    table.add_row("duplicates", repeated, f"{leaked} in train")
    table.add_row("diversity (Vendi)", *(_varied(counts["diversity"][part], counts[part]["conversations"]) for part in PARTS))
    return table


def _varied(found: dict[str, Any], conversations: int) -> str:
    text = f"{found['prompts']:,.0f} prompts, {found['replies']:,.0f} replies"
    return text if found["compared"] == conversations else f"{text} of {found['compared']:,}"


def lengths(counts: dict[str, Any]) -> Table:
    """Percentiles of rows and turns, in tokens."""
    points = list(counts["train"]["length"])
    table = _numbers("tokens", points)
    for kind, name in (("length", "row"), ("completion_length", "turn")):
        for part in PARTS:
            found = counts[part][kind]
            table.add_row(f"{name}, {part.replace('_', '-')}", *(f"{found[point]:,}" for point in points if found))
    return table


def layouts(counts: dict[str, Any]) -> Table:
    """What the training rows cost in every layout that is exact for the model, the chosen one in bold."""
    layout = counts["layout"]
    flops = (layout["predicted"] or {}).get("flops", {})
    table = _numbers("layout", ("tokens", "predicted speed-up"))
    for name in flops or ["padded"]:
        taken = name == layout["chosen"]
        faster = f"{flops['padded'] / flops[name]:.2f}x" if flops else ""
        table.add_row(f"{name}, chosen" if taken else name, f"{layout['tokens'][name]:,}", faster, style="bold" if taken else "")
    return table


def steps(counts: dict[str, Any]) -> Table:
    """Optimiser steps of an epoch and what is in each, with the chosen layout and without packing."""
    chosen, about = counts["layout"]["chosen"], "about " if counts["steps"]["estimated"] else ""
    table = _numbers("steps", ("an epoch", "each: rows", "tokens", "supervised", "conversations"))
    for name, found in {"padded": counts["steps"]["without_packing"], chosen: counts["steps"]["with_layout"]}.items():
        whole = (f"{found[key]:,}" for key in ("tokens_per_step", "supervised_tokens_per_step"))
        rows, conversations = (f"{found[key]:,.1f}" for key in ("rows_per_step", "conversations_per_step"))
        table.add_row(name, f"{about}{found['per_epoch']:,}", rows, *whole, conversations, style="bold" if name == chosen else "")
    return table


def chosen(layout: dict[str, Any]) -> Text:
    """The layout that is used, why, and what it saves."""
    name = {"none": "one conversation each"}.get(layout["name"], layout["name"])
    text = f"rows: {name}, {layout['reason']}; {layout['kernel']}"
    if layout["name"] == "tree":
        least, left = 1 / layout["limit"], layout["tokens"]["tree"] / layout["tokens"]["packed"]
        text += f"; sharing saves {1 - left:.0%} of the tokens, {1 - least:.0%} at most" if least < 1 else "; nothing to share"
    if (layout["predicted"] or {}).get("all_experts_counted"):
        text += "; the prediction counts all experts"
    return Text(text)


def groups(groups: list[dict[str, Any]]) -> Table:
    """The groups of the optimiser: which weights decay, and which learn faster."""
    right = (Column(name, justify="right") for name in ("tensors", "parameters"))
    table = Table(Column("optimizer", style=CONTEXT), *right, "of", box=None, pad_edge=False)
    for group in groups:
        decay, faster = group["weight_decay"], group["learning_rate_multiple"]
        label = (f"decay {decay:g}" if decay else "no decay") + (f", rate x{faster:g}" if faster != 1 else "")
        table.add_row(label, f"{group['tensors']:,}", f"{group['parameters']:,}", _modules(group["names"]))
    return table


def _modules(names: dict[str, int]) -> str:
    """Folded names as a person reads them: `lora_A, lora_B of q_proj, v_proj`, each module once, without its place."""
    found: dict[str, dict[str, None]] = {}
    for name in names:
        parts = ["model", *(part for part in name.split(".") if part != "*")]
        if parts[-1] == "weight" and parts[-2].startswith(("lora_", "modules_to_save")):
            del parts[-1]
        found.setdefault(parts[-2], {})[parts[-1]] = None
    alike: dict[tuple[str, ...], list[str]] = {}
    for module, leaves in found.items():
        alike.setdefault(tuple(leaves), []).append(module)
    weights = [", ".join(modules) for leaves, modules in alike.items() if leaves == ("weight",)]
    others = [f"{', '.join(leaves)} of {', '.join(modules)}" for leaves, modules in alike.items() if leaves != ("weight",)]
    return "; ".join(weights + others)


def _numbers(first: str, names: Sequence[str]) -> Table:
    """A table of names and numbers."""
    return Table(Column(first, style=CONTEXT), *(Column(name, justify="right") for name in names), box=None, pad_edge=False)
