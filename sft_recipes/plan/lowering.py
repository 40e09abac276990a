"""What to lower in a run that has run out of memory: the smallest change that the plan's arithmetic finds to fit, with its figures.

Nothing is measured and no weight is loaded; tensors are on the meta device or fake, so that it can be asked within the process that failed.
"""

from __future__ import annotations

import dataclasses
import re
from functools import cache

import torch

from ..engines import launched, unparted
from ..preflight import Report, together
from ..recipe import RecipeError
from .devices import Device, here
from .fitting import OWN, Change, Models, Refused, Row, after, smallest
from .memory import ENGINES, Setting, needed
from .planning import Machine, instead, numbers, setting_of

MARGIN = 0.1  # of what is counted, that a run has to lose that should have fitted: measured runs are that far off, see benchmarks/memory.py
CUTS = (2, 4, 8, 16)  # of the longest conversation, where nothing else helps
IN_MAKE = ((r"--engine (\w+)", r"ENGINE=\1"), (r"--gpus (\d+)", r"GPUS=\1"))  # the words of `plan` that `train` has not


def lowered(report: Report) -> str:
    """The smallest changes after which a run fits where this process runs.

    Args:
        report: recipe, rows and layout of the run, prepared.

    Returns:
        `--row_tokens 2048 --gradient_accumulation_steps 8: 61.2 GB in place of 83.0, of 80.0`; where cutting conversations would
        leave alone how the model learns, that as well; and a remark where the arithmetic had let the run fit.

    Raises:
        RecipeError: no change that is known here is enough, or the engine is none that can be counted.
        Exception: what a model's own code raises where it cannot be followed.
    """
    with unparted():
        return _lowered(report)


def _lowered(report: Report) -> str:
    on, recipe = _machine(report), report.resolved.recipe
    setting, row = setting_of(report, on, report.layout is not None and report.layout.packed is not None)
    setting = dataclasses.replace(setting, checkpointing=bool(report.resolved.config.gradient_checkpointing))
    models = cache(lambda kind: numbers(instead(recipe, kind), setting, row.packed))
    counted, there = needed(models(OWN), setting).total, on.device.memory
    room = min(there, (1 - MARGIN) * counted)
    refused = _refused(report)
    ways = [smallest(models, setting, row, room, refused)]
    if ways[0] is None or ways[0][-1].model != OWN:
        ways.append(_cut(models, setting, row, room, refused))
    lines = [_line(models, way, counted, there) for way in ways if way]
    if not lines:
        raise RecipeError(f"{_gb(counted)} GB are counted, {_gb(there)} are there, and no change that is known here is enough")
    remark = "" if counted > there else f" (counted, it should have fitted: something else takes memory, and {MARGIN:.0%} less was sought)"
    rough = f" (activations by a rule of thumb: {models(OWN).counted})" if models(OWN).counted else ""
    return " or ".join(lines) + remark + rough


def _machine(report: Report) -> Machine:
    """This process's share of this machine, and the engine it runs on."""
    config = report.resolved.config
    engine, device = launched(config), here(cpu=bool(config.use_cpu))
    name = "ddp" if engine.name == "none" else engine.name
    if name not in ENGINES:
        raise RecipeError(f"{name} is none of the engines that can be counted")
    return Machine(device if device.cuda else _shared(device, engine.local), engine.processes, name)


def _shared(device: Device, processes: int) -> Device:
    """Processes on one CPU share its memory."""
    return dataclasses.replace(device, memory=device.memory / processes)


def _refused(report: Report) -> Refused:
    """What `check` would refuse on this machine; and more processes on the same CPU, which share its memory."""
    resolved, engine = report.resolved, launched(report.resolved.config)

    def of(change: Change) -> bool:
        asked, processes = change.setting.engine, change.setting.devices
        if processes != engine.processes and not change.setting.cuda:
            return True
        then = dataclasses.replace(engine, name=asked if processes > 1 else "none", processes=processes)
        return bool(together.faults(instead(resolved.recipe, change.model), resolved.config, then, torch.cuda.device_count()))

    return of


def _cut(models: Models, setting: Setting, row: Row, room: float, refused: Refused) -> list[Change] | None:
    """The same with conversations cut to a half, a quarter and so on, and how the model learns left alone."""
    for factor in CUTS:
        longest = -(-row.longest // factor)
        shorter = setting
        if not row.packed or setting.length <= row.longest:  # else a row has as many tokens of more conversations
            length, supervised = -(-setting.length // factor), -(-setting.supervised // factor)
            shorter = dataclasses.replace(setting, length=length, supervised=supervised)
        found = smallest(models, shorter, dataclasses.replace(row, longest=longest), room, refused)
        if found is not None and (not found or found[-1].model == OWN):
            return [Change(f"--max_length {longest} (the longest row has {row.longest})", shorter), *found]
    return None


def _line(models: Models, changes: list[Change], counted: float, there: float) -> str:
    words = " and ".join(change.words for change in changes)
    for pattern, instead_of in IN_MAKE:
        words = re.sub(pattern, instead_of, words)
    return f"{words}: {_gb(after(models, changes))} GB in place of {_gb(counted)}, of {_gb(there)}"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f}" if size >= 1e9 else f"{size / 1e9:,.3f}"
