"""Ours beside TRL's: tokens per second, memory, share of what the device can multiply; and what `plan` predicted of the memory."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sft_recipes.plan.memory import Setting, needed
from sft_recipes.plan.model import Model
from sft_recipes.plan.planning import LOGGED
from sft_recipes.plan.shapes import model_of
from sft_recipes.preflight.cost import cost
from sft_recipes.weights import load_model, unweighted

from .baton import Step, alternate
from .device import Budget, allocated, beside, cuda
from .models import lora, recipe_of, tokens
from .sides import LAYOUTS, Case, Side, Work, bar, ours, trl, work
from .table import NO_TIME, Figure, Table

CLOSE = 0.02  # relative difference of the first step's losses, in bf16
ROOM = 0.92  # of the device's memory that a prediction may fill
LEAST_SHARE = 0.45  # of the measured peak, on chat with LoRA at 8,192
FIGURES = ("supervised tokens/s, ours", "supervised tokens/s, TRL", "ours to TRL", "tokens/s, ours", "tokens/s, TRL")
MEMORY, TRLS = "peak memory, ours", "peak memory, TRL"
SHARE, LOSS = "share of the measured peak, ours", "first loss, ours to TRL's"


def declared(cases: Sequence[Case], held: bool) -> list[Figure]:
    """Every figure of these cases; `held`: to their bars, which are those of a GPU."""
    found = []
    for case in cases:
        of = f"{case.name}: "
        for name in FIGURES:
            ratio = name == "ours to TRL"
            found.append(Figure("fast", of + name, "times" if ratio else "", least=bar(case.workload) if ratio and held else None))
        found += [Figure("fast", of + name, "GB") for name in (MEMORY, TRLS)]
        asked = case.workload == "chat" and not case.quantised and case.tokens >= 8192
        found.append(Figure("fast", of + SHARE, least=LEAST_SHARE if asked else None))
        found.append(Figure("fast", of + LOSS, "apart", most=CLOSE))
        found.append(Figure("right", of + "predicted to measured memory", "off", least=-0.1, most=0.1))
    return found


@dataclass
class Bench:
    """One model in one precision, loaded once for each side.

    Attributes:
        folder: of its checkpoint.
        scale: `full` or `tiny`.
        quantised: whether it is trained on NF4.
        rate: operations a second of the measured matrix product; `None` where there is none.
        rounds: steps of each side whose time counts.
        layouts: TRL's fastest one by model, workload and length, found by the first that asks.
    """

    folder: Path
    scale: str
    quantised: bool
    rate: float | None
    rounds: int
    layouts: dict[tuple[str, str, int], str]

    def __post_init__(self) -> None:
        self.recipe = recipe_of(self.folder, self.scale, self.quantised)
        self.sides = {name: self._loaded() for name in ("ours", "trl")}
        self.planned: dict[int, Model] = {}

    def _loaded(self) -> Side:
        before = allocated()
        model = load_model(self.recipe.model, self.recipe.dtype, self.recipe.quantization)
        return Side(model, lora(), allocated() - before)

    def measure(self, case: Case, table: Table, until: Budget) -> None:
        """All figures of a case; again with gradient checkpointing where it does not fit without."""
        of = work(case.workload, case.tokens)
        for checkpointing in (False, True):
            if not checkpointing and not self._fits(case, of):
                continue
            try:
                self._measure(case, of, checkpointing, table, until)
                return
            except RuntimeError as error:
                if checkpointing or "out of memory" not in str(error):
                    raise
                self._clear()

    def _measure(self, case: Case, of: Work, checkpointing: bool, table: Table, until: Budget) -> None:
        layout = self._layout(case, of, checkpointing, until)
        with tempfile.TemporaryDirectory() as folder:
            trainers = {"ours": ours(self.sides["ours"], of, self.rounds + 3, checkpointing, folder)}
            trainers["trl"] = trl(self.sides["trl"], layout, of, case.tokens, self.rounds + 3, checkpointing, folder)
            steps = alternate(trainers, self.rounds, until)
            losses = {name: trainer.state.log_history[0]["loss"] for name, trainer in trainers.items()}
            self._unwrap(trainers)
        del trainers
        self._clear()
        self._tell(case, of, layout, checkpointing, steps, losses, table)

    def _layout(self, case: Case, of: Work, checkpointing: bool, until: Budget) -> str:
        """TRL's fastest layout, found once for each workload and length by a step of each."""
        key = case.model, case.workload, case.tokens
        if key not in self.layouts:
            seconds: dict[str, float] = {}
            for layout in LAYOUTS if cuda() else LAYOUTS[:2]:
                if seconds and until.left <= 0:
                    break
                with tempfile.TemporaryDirectory() as folder:
                    trainer = trl(self.sides["trl"], layout, of, case.tokens, 4, checkpointing, folder)
                    with suppress(RuntimeError):  # of one that does not fit, or does not run here
                        seconds[layout] = alternate({"trl": trainer}, 1)["trl"][-1].seconds
                    self._unwrap({"trl": trainer})
                    del trainer
                self._clear()
            if not seconds:
                raise RuntimeError("out of memory: none of TRL's layouts ran")
            self.layouts[key] = min(seconds, key=seconds.__getitem__)
        return self.layouts[key]

    def _unwrap(self, trainers: Mapping[str, Any]) -> None:
        """The models as they were before accelerate put autocast around them."""
        for trainer in trainers.values():
            trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)

    def _clear(self) -> None:
        if cuda():  # elsewhere it would only take time
            gc.collect()
            torch.cuda.empty_cache()

    # What plan says

    def predicted(self, case: Case, of: Work, checkpointing: bool) -> float:
        """Bytes, by `plan`'s arithmetic on the configuration alone."""
        if case.tokens not in self.planned:
            computed = ("mixed" if cuda() else "stored",)
            self.planned[case.tokens] = model_of(unweighted(str(self.folder)), self.recipe, case.tokens, computed, True)
        longest = max(len(row["input_ids"]) for row in of.packed.rows)
        supervised = LOGGED + max(int((row["labels"] != -100).sum()) for row in of.packed.rows)
        steady: Any = dict(accumulation=len(of.packed.rows), checkpointing=checkpointing, dtype=self.recipe.dtype, cuda=cuda())
        return needed(self.planned[case.tokens], Setting("ddp", 1, 1, longest, supervised, **steady)).total

    def _fits(self, case: Case, of: Work) -> bool:
        """Whether one side fits beside the other's weights without gradient checkpointing."""
        predicted = self.predicted(case, of, False) + self.sides["trl"].held
        return not cuda() or predicted < ROOM * torch.cuda.get_device_properties(0).total_memory

    # What was found

    def _tell(
        self, case: Case, of: Work, layout: str, again: bool, steps: Mapping[str, Sequence[Step]], losses: dict[str, float], table: Table
    ) -> None:
        seconds = {name: [step.seconds for step in found[1:]] for name, found in steps.items()}
        note = f"{layout}{', gradient checkpointing on both sides' if again else ''}"
        if not all(seconds.values()):
            for section in ("fast", "right"):
                table.miss(NO_TIME, section, case.name)
            return

        def give(name: str, values: Sequence[float] | float, note: str = "") -> None:
            table.give("fast", f"{case.name}: {name}", values, note)

        laid = {"ours": tokens(of.packed.rows), "trl": tokens(of.rows)}
        for name, label in (("ours", "ours"), ("trl", "TRL")):
            give(f"supervised tokens/s, {label}", [of.supervised / s for s in seconds[name]], note if name == "trl" else "")
            give(f"tokens/s, {label}", [laid[name] / s for s in seconds[name]], "in its rows, without padding")
        limit = f"{laid['trl'] / laid['ours']:.2f} times as many tokens without sharing"
        give("ours to TRL", [b / a for a, b in zip(seconds["ours"], seconds["trl"], strict=True)], limit)
        give(LOSS, abs(losses["ours"] / losses["trl"] - 1))
        if not cuda():
            return
        held = {name: self.sides[name].held + found[0].kept + max(step.above for step in found[1:]) for name, found in steps.items()}
        give(MEMORY, held["ours"] / 1e9, "allocated at most")
        give(TRLS, held["trl"] / 1e9, "allocated at most")
        if self.rate:
            told = "what checkpointing repeats is not counted" if again else ""
            give(SHARE, [self._flops(of) / s / self.rate for s in seconds["ours"]], told)
        found = self.predicted(case, of, again) / (held["ours"] + beside()) - 1
        table.give("right", f"{case.name}: predicted to measured memory", found, f"with {beside() / 1e9:.2f} GB beside torch's own")

    def _flops(self, of: Work) -> float:
        """Operations of a step: of each frozen matrix there and back, two; of each visible pair, three. Nothing that is computed twice."""
        model = cost(unweighted(str(self.folder)))
        whole = model.tree(of.packed.rows, of.supervised).flops
        attention = replace(model, matrices=0, head=0).tree(of.packed.rows, 0).flops
        return 2 * (whole - attention) + 3 * attention
