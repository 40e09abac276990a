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
Refused = Callable[[Change], bool]


def smallest(models: Models, setting: Setting, row: Row, room: float, refused: Refused = lambda change: False) -> list[Change] | None:
    """The changes after which the run fits, the fewest and least; none where it fits as it is, `None` where nothing here helps.

    Args:
        models: gives the numbers of the recipe's model, and of what could be trained instead.
        setting: as it is.
        row: what makes a micro-batch.
        room: bytes of a device.
        refused: whether a run that is set so (of one as it is, `words` are empty) could not be started.
    """
    best: tuple[Any, list[Change]] | None = None
    for levels, taken in _ways(families(row, models(OWN)), setting, OWN):
        key = (levels[:LEARNING:-1], sum(map(bool, levels)), levels[::-1])
        if best is None or key < best[0]:
            last = taken[-1] if taken else Change("", setting)
            if not refused(last) and needed(models(last.model), last.setting).total <= room:
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
    """Those that hold less; of the last two what holds more, for a run that does not go with them."""
    better = {"ddp": ("zero2", "fsdp2"), "zero2": ("fsdp2",), "zero3": ("ddp", "zero2"), "fsdp2": ("ddp", "zero2")}
    for engine in better.get(setting.engine, ()) if setting.devices > 1 else ():
        yield Change(f"--engine {engine}", dataclasses.replace(setting, engine=engine), model)


def _smaller(setting: Setting, model: str, row: Row) -> Iterator[Change]:
    """Smaller micro-batches and as many more of them a step, as far as a conversation goes."""
    for factor in _factors(setting, row):
        accumulation = setting.accumulation * factor
        rows, length = setting.rows, -(-setting.length // factor)
        size = f"--per_device_train_batch_size {row.batch // factor}"
        if not row.packed:
            rows, length = -(-setting.rows // factor), setting.length
        elif row.row_tokens is not None:
            size, length = f"--row_tokens {row.row_tokens // factor}", min(setting.length, row.row_tokens // factor)
        fewer = -(-setting.supervised * rows * length // (setting.rows * setting.length))
        changed = dict(rows=rows, length=length, accumulation=accumulation, supervised=fewer)
        words = f"{size} --gradient_accumulation_steps {accumulation}"
        yield Change(words, dataclasses.replace(setting, **changed), model)  # type: ignore[arg-type]


def _factors(setting: Setting, row: Row) -> list[int]:
    """By what a micro-batch can be parted such that a step stays as large: what divides a batch; halves of a row with tokens of its own."""
    if row.packed and row.row_tokens is not None:
        return [2**i for i in range(1, row.row_tokens.bit_length()) if row.row_tokens / 2**i >= row.longest]
    return [n for n in range(2, row.batch + 1) if row.batch % n == 0 and (not row.packed or setting.length / n >= row.longest)]


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


def after(models: Models, changes: Sequence[Change]) -> float:
    """Bytes of a device after the last of them."""
    return needed(models(changes[-1].model), changes[-1].setting).total


def both_ways(model: Model, setting: Setting, engines: Sequence[str]) -> Mapping[str, tuple[float, float]]:
    """Bytes of a device for each engine, without gradient checkpointing and with it."""
    asked = {engine: [dataclasses.replace(setting, engine=engine, checkpointing=again) for again in (False, True)] for engine in engines}
    return {engine: (needed(model, pair[0]).total, needed(model, pair[1]).total) for engine, pair in asked.items()}
