"""Whether a run fits, and the smallest change that makes it fit; each change is computed, none is guessed.

Changes stand in the order of how little they change what is learned. Nothing at all: gradient checkpointing, weights in parts, smaller
micro-batches with more of them a step. Rounding: AdamW's moments in 8 bits. How it is learned: LoRA, then on a base in 4 bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .memory import Setting, needed
from .model import Model

LEARNING = 3  # of the kinds of changes, the last that leaves alone what is learned
OWN, LORA, QLORA = "own", "lora", "qlora"  # the recipe's own model, and others that could be trained instead
Models = Callable[[str], Model]


@dataclass(frozen=True)
class Row:
    """What of a recipe's figures makes a micro-batch.

    Attributes:
        batch: `per_device_train_batch_size`.
        longest: tokens of the longest conversation, below which no row can be.
        row_tokens: where the recipe names it.
    """

    batch: int
    longest: int
    row_tokens: int | None = None
    packed: bool = True


@dataclass(frozen=True)
class Change:
    """One thing to do: in words, the setting it gives, and the model that is then trained."""

    words: str
    setting: Setting
    model: str = OWN


Family = Callable[[Setting, str], Iterator[Change]]


def smallest(models: Models, setting: Setting, row: Row, room: float) -> list[Change] | None:
    """The changes after which the run fits, the fewest and least; none where it fits as it is, `None` where nothing here helps.

    Args:
        models: gives the numbers of the recipe's model, and of what could be trained instead.
        setting: as it is.
        row: what makes a micro-batch.
        room: bytes of a device.
    """
    best: tuple[Any, list[Change]] | None = None
    for levels, taken in _ways(families(row, models(OWN)), setting, OWN):
        key = (levels[:LEARNING:-1], sum(map(bool, levels)), levels[::-1])
        if best is None or key < best[0]:
            last = taken[-1] if taken else Change("", setting)
            if needed(models(last.model), last.setting).total <= room:
                best = key, taken
    return None if best is None else best[1]


def _ways(kinds: Sequence[Family], setting: Setting, model: str) -> Iterator[tuple[tuple[int, ...], list[Change]]]:
    """Every choice of none or one change of each kind, with how much of each that is; the last one's setting has all of them."""
    if not kinds:
        yield (), []
        return
    first: list[Change | None] = [None, *kinds[0](setting, model)]
    for level, change in enumerate(first):
        then = (setting, model) if change is None else (change.setting, change.model)
        for levels, taken in _ways(kinds[1:], *then):
            yield (level, *levels), ([] if change is None else [change]) + taken


def families(row: Row, model: Model) -> list[Family]:
    """The kinds of changes, each from little to much."""
    return [_checkpointed, _in_parts, lambda s, m: _smaller(s, m, row), _spread, _eight_bits, lambda s, m: _adapted(s, m, model)]


def _checkpointed(setting: Setting, model: str) -> Iterator[Change]:
    if not setting.checkpointing:
        yield Change("--gradient_checkpointing true", dataclasses.replace(setting, checkpointing=True), model)


def _in_parts(setting: Setting, model: str) -> Iterator[Change]:
    better = {"ddp": ("zero2", "fsdp2"), "zero2": ("fsdp2",)}
    for engine in better.get(setting.engine, ()) if setting.devices > 1 else ():
        yield Change(f"--engine {engine}", dataclasses.replace(setting, engine=engine), model)


def _smaller(setting: Setting, model: str, row: Row) -> Iterator[Change]:
    """Micro-batches of half the size and twice as many of them a step, as far as a conversation goes."""
    factor = 2
    while (setting.length / factor >= row.longest and row.batch >= factor) if row.packed else setting.rows >= factor:
        rows, length = (setting.rows, -(-setting.length // factor)) if row.packed else (setting.rows // factor, setting.length)
        accumulation, fewer = setting.accumulation * factor, -(-setting.supervised // factor)
        size = f"--per_device_train_batch_size {max(1, row.batch // factor)}"
        if row.row_tokens is not None:
            size = f"--row_tokens {length}"
        words = f"{size} --gradient_accumulation_steps {accumulation}"
        changed = dict(rows=rows, length=length, accumulation=accumulation, supervised=fewer)
        yield Change(words, dataclasses.replace(setting, **changed), model)  # type: ignore[arg-type]
        factor *= 2


def _spread(setting: Setting, model: str) -> Iterator[Change]:
    """More devices, where they share the state; the step keeps its size as long as there are micro-batches to give away."""
    if setting.engine == "ddp":
        return
    for factor in (2, 4, 8, 16):
        devices, accumulation = setting.devices * factor, max(1, setting.accumulation // factor)
        words = f"--gpus {devices}"
        if accumulation != setting.accumulation:
            words += f" --gradient_accumulation_steps {accumulation}"
        if accumulation * factor != setting.accumulation:
            words += f" (a step is {factor * accumulation / setting.accumulation:g} times as large)"
        yield Change(words, dataclasses.replace(setting, devices=devices, accumulation=accumulation), model)


def _eight_bits(setting: Setting, model: str) -> Iterator[Change]:
    if setting.cuda and setting.engine == "ddp" and "adamw" in setting.optim and "8bit" not in setting.optim:
        yield Change("--optim adamw_bnb_8bit", dataclasses.replace(setting, optim="adamw_bnb_8bit"), model)


def _adapted(setting: Setting, model: str, own: Model) -> Iterator[Change]:
    whole = own.trainable > own.parameters / 2
    if whole:
        yield Change("a LoRA of rank 16 on every linear layer instead of all weights", setting, LORA)
    if setting.cuda and setting.engine == "ddp" and not any("4" in w.stored for w in own.weights if w.stored not in ("float32",)):
        yield Change("a LoRA of rank 16 on a base in 4 bits (QLoRA)" if whole else "the base in 4 bits (QLoRA)", setting, QLORA)


def advice(model: Model, setting: Setting, row: Row, room: float) -> list[str]:
    """Which figures to lower and by how much where memory has run out, with what each would leave; what keeps what is learned.

    Args:
        model: its numbers, from `shapes.model_of`.
        setting: the one that did not fit.
        row: what makes a micro-batch.
        room: bytes of a device.

    Returns:
        a line for each change, the least first: `--gradient_checkpointing true: 31.2 GB instead of 96.0, of 80.0`.
    """
    before, lines = needed(model, setting).total, []
    for kind in families(row, model)[:-1]:
        for change in kind(setting, OWN):
            after = needed(model, change.setting).total
            if after < before:
                lines.append(f"{change.words}: {after / 1e9:.1f} GB instead of {before / 1e9:.1f}, of {room / 1e9:.1f}")
    return lines


def after(models: Models, changes: Sequence[Change]) -> float:
    """Bytes of a device after the last of them."""
    return needed(models(changes[-1].model), changes[-1].setting).total


def both_ways(model: Model, setting: Setting, engines: Sequence[str]) -> Mapping[str, tuple[float, float]]:
    """Bytes of a device for each engine, without gradient checkpointing and with it."""
    asked = {engine: [dataclasses.replace(setting, engine=engine, checkpointing=again) for again in (False, True)] for engine in engines}
    return {engine: (needed(model, pair[0]).total, needed(model, pair[1]).total) for engine, pair in asked.items()}
