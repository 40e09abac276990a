"""A checked recipe and a machine to what the run will take: memory, steps, operations, hours, cost."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

from peft import LoraConfig
from transformers import BitsAndBytesConfig

from ..config import Resolved, resolve
from ..engines import Engine
from ..preflight import SAMPLE, Report, check, steps, together
from ..preflight.cost import Cost
from ..preflight.layouts import abilities
from ..recipe import Recipe, RecipeError, unknown_name
from ..rows import IGNORED
from ..weights import unweighted
from . import compute
from .devices import PRICES, Device, find, here
from .fitting import LORA, OWN, QLORA, Change, Refused, Row, after, both_ways, smallest
from .memory import ENGINES, Setting, needed, precision, state
from .model import Model
from .shapes import model_of
from .sharding import simulated

LOGGED = 32  # positions without loss that the head is shown too, see `loss.CONTEXT`


@dataclass(frozen=True)
class Machine:
    """What a run is planned for.

    Attributes:
        device: each of them alike.
        count: how many, all together.
        engine: one of `ENGINES`.
        mfu: the share of a device's peak that is used.
        price: US dollars an hour and device, `None` for the assumed one.
        tensor: devices that share the work on a row.
    """

    device: Device
    count: int = 1
    engine: str = "ddp"
    mfu: float = compute.MFU
    price: float | None = None
    tensor: int = 1


def machine(
    gpu: str = "", gpus: int = 1, engine: str = "", mfu: float = compute.MFU, price: float | None = None, tensor: int = 1
) -> Machine:
    """What a person asked for; several devices without a name are `h100` where this machine has none of its own.

    Raises:
        RecipeError: a name nobody knows, or a number that cannot be; all of them together.
    """
    faults = []
    if engine and engine not in ENGINES:
        faults.append(f"{unknown_name('engine', engine, ENGINES)} Known: {', '.join(ENGINES)}")
    if gpus < 1 or tensor < 1 or gpus % tensor:
        faults.append(f"--gpus {gpus} --tensor {tensor}: both are 1 or more, and the devices fall into groups of that size")
    if not 0 < mfu <= 1:
        faults.append(f"--mfu {mfu:g}: it is a share of the device's peak, above 0 to 1; 0.4 is usual")
    if price is not None and price < 0:
        faults.append(f"--price {price:g}: it is US dollars an hour for one device")
    device = here()
    try:
        device = find(gpu) if gpu else find("h100") if gpus > 1 and not device.cuda else device
    except RecipeError as error:
        faults += error.faults
    if faults:
        raise RecipeError(*faults)
    return Machine(device, gpus, engine or ("ddp" if gpus == 1 else "fsdp2"), mfu, price, tensor)


def planned(name: str, scale: str, on: Machine, **fields: Any) -> tuple[Resolved, dict[str, Any]]:
    """A recipe as it will run, and its plan; `auto` is the full scale where the machine planned for has CUDA.

    Raises:
        RecipeError: as `resolve` and `plan`.
    """
    resolved = resolve(name, "full" if scale == "auto" and on.device.cuda else scale, **fields)
    return resolved, plan(check(resolved, sample=SAMPLE), on)


def plan(report: Report, on: Machine | None = None) -> dict[str, Any]:
    """What a run will take; nothing is measured and no weight is loaded.

    Data that could not be read are `not_counted`, and rows are then taken as long as they may be.

    Args:
        report: from `preflight.check`.
        on: by default this machine.

    Raises:
        RecipeError: there is no model to count, or its adapter does not fit.
    """
    on = on or machine()
    recipe = report.resolved.recipe
    if report.counts.get("parameters") is None:
        raise RecipeError(*report.faults)
    empty = unweighted(recipe.model, recipe.revision)
    able = abilities(empty, recipe.adapter, report.resolved.config)
    setting, row = setting_of(report, on, not able.obstacle)
    models = cache(lambda kind: numbers(instead(recipe, kind), setting, row.packed))
    own, room = models(OWN), on.device.memory
    found = _memory(own, setting)
    faults, refused = refusals(report.resolved, setting)
    changes = smallest(models, setting, row, room, refused)
    run = _run(report, on, setting, able.cost, own)
    return {
        "parameters": report.counts["parameters"],
        "weights_gb": sum(w.bytes for w in own.weights if not w.trainable or recipe.adapter is None) / 1e9,
        "rows": report.layout.name if report.layout else ("tree" if row.packed else "none"),
        **run,
        "trainable_parameters": own.trainable,
        "device": {"name": on.device.name, "label": on.device.label, "memory_gb": room / 1e9, "count": on.count, "tensor": on.tensor},
        "engine": on.engine,
        "micro_batch": {"rows": setting.rows, "length": setting.length, "supervised": setting.supervised},
        "gradient_accumulation_steps": setting.accumulation,
        "gradient_checkpointing": setting.checkpointing,
        "memory": found,
        "fits": found[on.engine]["total"] * 1e9 <= room,
        "refused": faults,
        "changes": None if changes is None else [change.words for change in changes],
        "changed_gb": None if not changes else after(models, changes) / 1e9,
        "estimated": own.counted,
        "sharded": simulated(empty, recipe, on.count) if on.engine == "fsdp2" and on.count > 1 else None,
        "not_counted": report.faults,
    }


def refusals(resolved: Resolved, setting: Setting) -> tuple[list[str], Refused]:
    """What `check` will refuse wherever the run is started: of the run as it is, and whether of a change."""

    @cache
    def faults(engine: str, devices: int, kind: str) -> list[str]:
        return together.combined(instead(resolved.recipe, kind), resolved.config, Engine(engine, devices))

    def of(change: Change) -> bool:
        return bool(faults(change.setting.engine, change.setting.devices, change.model))

    return faults(setting.engine, setting.devices, OWN), of


def instead(recipe: Recipe, kind: str) -> Recipe:
    """The recipe with another way to learn."""
    if kind == OWN:
        return recipe
    adapter = recipe.adapter or LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    asked = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16")
    four = BitsAndBytesConfig(**asked) if kind == QLORA else recipe.quantization
    return dataclasses.replace(recipe, adapter=adapter, quantization=four, dtype="bfloat16" if kind in (LORA, QLORA) else recipe.dtype)


def numbers(recipe: Recipe, setting: Setting, packed: bool) -> Model:
    """The recipe's model in numbers, for whatever each engine computes in; it is made anew, on the meta device.

    Raises:
        RecipeError: as `unweighted`, or the adapter does not fit.
    """
    computed = dict.fromkeys(precision(dataclasses.replace(setting, engine=engine)) for engine in ENGINES)
    return model_of(unweighted(recipe.model, recipe.revision), recipe, setting.length, tuple(computed), packed)


def setting_of(report: Report, on: Machine, able: bool) -> tuple[Setting, Row]:
    """How it is trained there, which is not how it would be trained here."""
    recipe, config = report.resolved.recipe, report.resolved.config
    given, cuda = {**recipe.config, **report.resolved.overrides}, on.device.cuda
    row = _row(report, able and recipe.packing != "none")
    rows, length, supervised = _micro_batch(report, row)
    again = bool(config.gradient_checkpointing) if "gradient_checkpointing" in given else cuda
    share = dict(engine=on.engine, devices=on.count, tensor=on.tensor, cuda=cuda)
    steady = dict(accumulation=config.gradient_accumulation_steps, checkpointing=again, optim=str(config.optim.value))
    return Setting(rows=rows, length=length, supervised=supervised, dtype=recipe.dtype, **share, **steady), row  # type: ignore[arg-type]


def _row(report: Report, packed: bool) -> Row:
    recipe, config = report.resolved.recipe, report.resolved.config
    if report.layout and report.prepared:
        longest = max(len(row["input_ids"]) for row in report.prepared.rows)
        return Row(config.per_device_train_batch_size, longest, recipe.row_tokens, report.layout.packed is not None)
    return Row(config.per_device_train_batch_size, config.max_length or 1024, recipe.row_tokens, packed)


def _micro_batch(report: Report, row: Row) -> tuple[int, int, int]:
    """Rows, tokens of each and supervised ones of the largest micro-batch; without data the largest that there can be."""
    if report.layout is None or report.prepared is None:
        if row.packed:
            length = row.row_tokens or row.batch * row.longest
            return 1, length, length
        return row.batch, row.longest, row.batch * row.longest
    if report.layout.packed is not None:
        rows = report.layout.packed.rows
        return 1, max(len(r["input_ids"]) for r in rows), LOGGED + max(map(_supervised, rows))
    longest = sorted(report.prepared.rows, key=lambda r: -len(r["input_ids"]))[: row.batch]
    return len(longest), row.longest, LOGGED + sum(map(_supervised, longest))


def _supervised(row: dict[str, Any]) -> int:
    return sum(int(label) != IGNORED for label in row["labels"])


def _memory(model: Model, setting: Setting) -> dict[str, dict[str, Any]]:
    """By engine, in GB: what is held at the worst moment, and the total without gradient checkpointing and with it."""
    found, ways = {}, both_ways(model, setting, ENGINES)
    for engine in ENGINES:
        memory = needed(model, dataclasses.replace(setting, engine=engine))
        parts = {name: value / 1e9 if isinstance(value, float | int) else value for name, value in asdict(memory).items()}
        totals = {"total": memory.total / 1e9, "without_checkpointing": ways[engine][0] / 1e9, "with_checkpointing": ways[engine][1] / 1e9}
        whole = state(model, dataclasses.replace(setting, engine=engine))[1] / 1e9
        found[engine] = {**parts, **totals, "all_gradients": whole}
    return found


def _run(report: Report, on: Machine, setting: Setting, cost: Cost | None, model: Model) -> dict[str, Any]:
    """Steps of the run and what is in one, all devices together; operations, hours and cost."""
    recipe, config, layout = report.resolved.recipe, report.resolved.config, report.layout
    copies = on.count // on.tensor
    if layout and report.prepared:
        names = ("gradient_accumulation_steps", "max_steps", "num_train_epochs", "train_batch_size", "per_device_train_batch_size")
        there: Any = SimpleNamespace(world_size=copies, **{name: getattr(config, name) for name in names})
        part = report.prepared.train
        share = len(part.conversations) / part.read
        found = steps.counted(layout, report.prepared.rows, report.prepared.supervised_tokens, there, share)[0].as_dict()
        work = layout.work[layout.chosen]
        forward = work.flops / work.tokens if work.flops else 0.0
    else:
        tokens = setting.rows * setting.length * setting.accumulation * copies
        found = {"per_epoch": None, "in_all": config.max_steps if config.max_steps > 0 else None, "tokens_per_step": tokens}
        forward = cost.separate([setting.length], setting.length).flops / setting.length if cost else 0.0
    forward = forward or 2.0 * sum(w.numel for w in model.weights if len(w.shape) > 1)
    total = None if found["in_all"] is None else found["in_all"] * found["tokens_per_step"]
    peak = on.device.float32 if recipe.dtype == "float32" else on.device.bfloat16
    price = on.device.price if on.price is None else on.price
    operations = None if total is None else total * forward * compute.backward(model.trainable / model.parameters)
    taken = None if total is None or operations is None else compute.bill(total, operations, on.count, peak, on.mfu, price)
    in_all, per_epoch = found.pop("in_all"), found.pop("per_epoch")
    assumed = {"mfu": on.mfu, "peak_flops": peak, "price_per_hour": price, "price": "--price" if on.price is not None else PRICES}
    bill = asdict(taken) if taken else dict(tokens=None, flops=None, hours=None, cost=None)
    return {"steps": in_all, "steps_per_epoch": per_epoch, **found, **bill, "assumed": assumed}
