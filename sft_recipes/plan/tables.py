"""A plan as a person sees it, in a terminal of 80 columns. Everything here prints and decides nothing."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from ..config import Resolved
from ..show.listing import CONTEXT

out = Console(highlight=False)
PARTS = {
    "weights": "weights",
    "gradients": "gradients by then",
    "optimizer": "optimizer state",
    "activations": "activations",
    "loss": "logits and loss",
    "buffers": "buffers",
    "total": "at most",
    "without_checkpointing": "  without checkpointing",
    "with_checkpointing": "  with checkpointing",
    "all_gradients": "all gradients",
}
NUMBERS = ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"))


def show(resolved: Resolved, planned: dict[str, Any]) -> None:
    """The whole plan."""
    out.print(heading(resolved, planned), soft_wrap=True)
    out.print(memory(planned))
    out.print(verdict(planned), soft_wrap=True)
    out.print("", run(planned), assumed(planned), sep="\n", soft_wrap=True)
    for line in remarks(planned):
        out.print(Text(line, "yellow"), soft_wrap=True)


def heading(resolved: Resolved, planned: dict[str, Any]) -> Text:
    """What is trained, on what, in which micro-batches."""
    device, batch = planned["device"], planned["micro_batch"]
    trained = planned["trainable_parameters"]
    rows = f"{batch['rows']:,} row{'s' * (batch['rows'] > 1)} of {batch['length']:,} tokens, {batch['supervised']:,} of them supervised"
    steps = planned["gradient_accumulation_steps"]
    groups = f" in groups of {device['tensor']} that share a row" if device["tensor"] > 1 else ""
    return Text.assemble(
        (f"{resolved.name}, {resolved.scale} scale", "bold"),
        f": {planned['parameters']:,} parameters, {trained:,} of them trained\n"
        if trained <= planned["parameters"] and resolved.recipe.adapter is None
        else f": {planned['parameters']:,} parameters, and {trained:,} trained beside them\n",
        f"on {device['count']:,} x {device['label']}{groups}, at a time {rows}{f', {steps} times a step' * (steps > 1)}\n",
    )


def memory(planned: dict[str, Any]) -> Table:
    """What a device holds, by engine; the chosen one in bold, what does not fit in red. One device has one column."""
    found, chosen = planned["memory"], planned["engine"]
    engines = list(found) if planned["device"]["count"] > 1 else [chosen]
    small = max(found[e]["total"] - found[e]["buffers"] for e in engines) < 1
    scale, unit = (1e3, "MB") if small else (1.0, "GB")
    names = [f"{e}, chosen" if e == chosen and len(engines) > 1 else e if len(engines) > 1 else "one device" for e in engines]
    styles = ["bold" if e == chosen else "" for e in engines]
    right = (Column(name, justify="right", style=style) for name, style in zip(names, styles, strict=True))
    table = Table(Column(f"{unit} on each device", style=CONTEXT), *right, box=None, pad_edge=False)
    room = planned["device"]["memory_gb"]
    for key, name in PARTS.items():
        if key == "without_checkpointing":
            asked = "with" if planned["gradient_checkpointing"] else "without"
            table.add_row(f"of {room:,.1f} GB, {asked} checkpointing", *(_fits(found[e]["total"], room) for e in engines))
        cells = (_cell(found[e][key], scale, room if key == "total" or "checkpointing" in key else None) for e in engines)
        table.add_row(name, *cells, end_section=key == "buffers")
    return table


def _fits(total: float, room: float) -> Text:
    return Text("fits", "green") if total <= room else Text("too much", "red")


def _cell(value: float, scale: float, room: float | None) -> Text:
    return Text(f"{value * scale:,.1f}", "red" if room is not None and value > room else "")


def verdict(planned: dict[str, Any]) -> Text:
    """Whether it fits and may be started, when most is held, and the smallest change that mends what is in the way."""
    found, room = planned["memory"][planned["engine"]], planned["device"]["memory_gb"]
    unit, scale = ("GB", 1.0) if found["total"] >= 1 else ("MB", 1e3)
    fits, refused = planned["fits"], planned["refused"]
    text = Text(f": {found['total'] * scale:,.1f} {unit} of {room:,.1f} GB are needed {found['moment']}")
    text = Text.assemble(("fits", "bold green") if fits else ("does not fit", "bold red"), text)
    for fault in refused:
        text.append("\nrefused", "bold red").append(f": {fault}")
    if fits and not refused:
        return text
    meant = "makes it fit" if not refused else "lets it start and makes it fit"
    if planned["changes"] is None:
        return text.append(f"\nno change that is known here {meant}")
    after = planned["changed_gb"]
    text.append(f"\nsmallest change that {meant}: ").append(" and ".join(planned["changes"]), "bold")
    return text.append(f", {after:,.1f} GB" if after >= 1 else f", {after * 1e3:,.1f} MB")


def run(planned: dict[str, Any]) -> Table:
    """Steps, tokens, operations, hours and cost; a line for each that is known."""
    table = Table(Column(style=CONTEXT), Column(justify="right"), box=None, pad_edge=False, show_header=False)
    hours, cost = planned["hours"], planned["cost"]
    lines = {
        "tokens a step": f"{planned['tokens_per_step']:,}" + _supervised(planned),
        "steps": None if planned["steps"] is None else f"{planned['steps']:,}",
        "tokens": _words(planned["tokens"]),
        "FLOPs of the model": None if planned["flops"] is None else f"{planned['flops']:.2e}",
        "time": None if hours is None else _time(hours),
        "cost": None if cost is None else f"${cost:,.0f}" if cost >= 10 else f"${cost:,.2f}",
    }
    for name, value in lines.items():
        table.add_row(name, value or "not known")
    return table


def _supervised(planned: dict[str, Any]) -> str:
    found = planned.get("supervised_tokens_per_step")
    return "" if found is None else f", {found:,} supervised"


def _words(number: float | None) -> str | None:
    if number is None:
        return None
    return next((f"{number / size:,.2f} {name}" for size, name in NUMBERS if number >= size), f"{number:,.0f}")


def _time(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s" if hours * 3600 >= 1 else "below a second"
    return f"{hours * 60:.0f} minutes" if hours < 1 else f"{hours:,.1f} hours" if hours < 48 else f"{hours / 24:,.1f} days"


def assumed(planned: dict[str, Any]) -> Text:
    """What time and cost rest on."""
    found, device = planned["assumed"], planned["device"]
    if found["peak_flops"] is None:
        return Text(f"time and cost are not known for {device['label']}; name a device with --gpu")
    speed = f"at {found['mfu']:.0%} of {found['peak_flops'] / 1e12:,.0f} TFLOP/s (--mfu); without evaluations, saving and the merge"
    if found["price_per_hour"] is None:
        return Text(speed)
    why = "" if found["price"] == "--price" else f", {found['price']} (--price)"
    return Text(f"{speed}; ${found['price_per_hour']:,.2f} an hour and device{why}")


def remarks(planned: dict[str, Any]) -> list[str]:
    """What stands behind the numbers, and what they leave out."""
    found, sharded = [], planned["sharded"]
    if sharded:
        held = f"the first of {planned['device']['count']:,} processes holds {sharded['parameters']:,} parameters"
        found.append(f"sharding simulated with tensors without memory: {held}, {sharded['gb_float32']:,.2f} GB in float32")
    if planned["estimated"]:
        found.append(f"activations are a rule of thumb, as the model could not be followed: {planned['estimated']}")
    if planned["not_counted"] and "rows_per_step" not in planned:
        found.append("without data, each row is taken as long as it may be and all of it as supervised")
    return found + [f"check finds: {fault}" for fault in planned["not_counted"]]
