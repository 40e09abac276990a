"""`make gpu`: everything that this project says of a GPU, measured on one, as one table; `make gpu SCALE=tiny` runs all of it on the CPU.

Within its minutes: a figure for which there is no time says so. With a CUDA device the table goes to `benchmarks/results/`, and the
picture to `docs/`; at the tiny scale, to the folder that `--out` names, if any.
"""

from __future__ import annotations

import argparse
import gc
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import datasets
import torch

from benchmarks.workloads import rows_of
from sft_recipes.attention import install
from sft_recipes.config import hush
from sft_recipes.weights import load_model, load_tokenizer

from . import exact, fast, picture
from .device import Budget, cuda, described, product
from .journey import travelled
from .merging import proven
from .models import GEMMA, LLAMA, adapted, recipe_of, write
from .sides import Case
from .table import NO_TIME, Figure, Table

ROOT = Path(__file__).parent.parent.parent
MINUTES, ROUNDS = 8.0, {"full": 5, "tiny": 1}
NO_DEVICE = "no CUDA device"
KEPT = {"merge": 90.0, "journey": 75.0}  # seconds that the last two sections need
EXACT, COMPARED = 1e-4, 3  # the bound in float32, and conversations that are compared
CHANCE = 1.1  # times the error of TRL's worst layout: which of two layouts of as much rounding is nearer is chance
TALKS = {"full": ("agent", 3), "tiny": ("answers", 1)}
WORKLOADS = ("agent", "chat", "reasoning")
MERGE = ("merge proof, mean KL", "merge proof, faults", "merge proof, generations that are equal")
JOURNEY = tuple(f"gemma-tools at tiny scale, {what}" for what in ("faults of the merge proof", "mean KL of the merge proof", "in all"))


def cases(scale: str) -> list[Case]:
    """In the order in which they are measured: first what has a bar of its own, last the second model."""
    if scale == "tiny":
        return [Case("agent", GEMMA, quantised, 2304) for quantised in (False, True)]
    gemma = [Case(name, GEMMA, quantised, size) for quantised in (False, True) for size in (8192, 4096) for name in WORKLOADS]
    return gemma + [Case(name, LLAMA, False, 8192) for name in ("agent", "chat")]


def declared(scale: str) -> Table:
    """Every figure, none of them measured yet."""
    found = [Figure("device", "bf16 matrix product, 8192 by 8192 by 8192", "TFLOP/s")]
    for name in (GEMMA, LLAMA):
        for what in ("hidden states", "gradients"):
            found.append(Figure("exact", f"{name}, tree against separate rows, float32, {what}", "apart", most=EXACT))
            found.append(Figure("exact", f"{name}, tree against separate rows, bf16, {what}", "apart", bar="TRL's layouts between them"))
            found.append(Figure("exact", f"{name}, tree in bf16 against float32, {what}", "apart", bar="1.1 times TRL's worst"))
        found.append(Figure("exact", f"{name}, isolation: change of one conversation by another", most=0.0))
    found.append(Figure("exact", f"{GEMMA}, NF4 against its dequantised weights", "apart", most=1e-3))
    found.append(Figure("exact", f"{GEMMA}, NEFTune noise over the paper's", least=0.98, most=1.02))
    found += [Figure("exact", f"{GEMMA}, {MERGE[0]}", "nats", most=1e-3), Figure("exact", f"{GEMMA}, {MERGE[1]}", most=0.0)]
    found.append(Figure("exact", f"{GEMMA}, {MERGE[2]}", note="of random weights, whose choices are near-ties"))
    found += sorted(fast.declared(cases(scale), scale == "full"), key=lambda figure: figure.section)
    found += [Figure("journey", JOURNEY[0], most=0.0), Figure("journey", JOURNEY[1], "nats", most=1e-3), Figure("journey", JOURNEY[2], "s")]
    return Table(found)


class Run:
    """One run of the benchmark: its figures as they come, each section in its time.

    Args:
        scale: `full` or `tiny`.
        folder: for checkpoints, 40 GB at full scale.
        budget: of all.
    """

    def __init__(self, scale: str, folder: Path, budget: Budget):
        self.scale, self.folder, self.budget = scale, folder, budget
        self.table, self.rate = declared(scale), 0.0
        self.bases: dict[str, Path] = {}
        self.layouts: dict[tuple[str, str, int], str] = {}

    def guarded(self, section: str, part: str, work: Callable[[], Any], kept: float = 0.0) -> None:
        """A part of a section; whatever it raises is the reason of the figures that it leaves open."""
        reason = NO_TIME
        if self.budget.left > kept:
            try:
                work()
                reason = NO_DEVICE if not cuda() else NO_TIME
            except Exception as error:  # the other sections are to run
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[-240:]}"
                print(f"{section}, {part}: {reason}", file=sys.stderr, flush=True)
        for name in (section, "right") if section == "fast" else (section,):
            self.table.miss(reason, name, part)
        if cuda():
            gc.collect()
            torch.cuda.empty_cache()
        print(f"{section} {part}: {self.budget.left:.0f} s left", file=sys.stderr, flush=True)

    def all(self) -> None:
        self.guarded("device", "", self.device)
        if cuda():
            torch.backends.cuda.matmul.allow_tf32 = False
            torch._dynamo.config.recompile_limit = 64  # two models in three precisions, and TRL's masks: a single run has a few
        kept = sum(KEPT.values())
        for name in (GEMMA, LLAMA):
            self.guarded("exact", f"{name}, tree", partial(self.trees, name), kept)
        self.guarded("exact", f"{GEMMA}, NF4", self.quantised, kept)
        asked = cases(self.scale)
        for key in dict.fromkeys((case.model, case.quantised) for case in asked):
            self.fast([case for case in asked if (case.model, case.quantised) == key], kept)
        self.guarded("exact", "merge", self.merge, KEPT["journey"])
        self.guarded("journey", "", self.journey)
        for section in ("exact", "fast", "right"):
            self.table.miss(NO_TIME, section)

    def base(self, name: str) -> Path:
        """A checkpoint, made when it is first asked for."""
        if name not in self.bases:
            self.bases[name] = write(name, self.scale, self.folder)
        return self.bases[name]

    def device(self) -> None:
        if cuda():
            found = product()
            self.rate = sorted(found)[len(found) // 2]
            self.table.give("device", "bf16 matrix product, 8192 by 8192 by 8192", [value / 1e12 for value in found])

    def trees(self, name: str) -> None:
        """Hidden states, gradients and isolation, in float32 and bf16."""
        recipe = recipe_of(self.base(name), self.scale, quantised=False)
        workload, count = TALKS[self.scale]
        pad, rows = load_tokenizer(recipe).pad_token_id, rows_of(workload, count)[0][:COMPARED]
        model = adapted(recipe, "float32")
        install(model)
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
        model.train()
        exactly = {layout: exact.read(model, exact.batches(layout, rows, pad)) for layout in ("alone", "tree")}
        self.tell(name, "tree against separate rows, float32", exact.apart(exactly["tree"], exactly["alone"]))
        truth = exactly.pop("alone")
        del exactly
        self.table.give("exact", f"{name}, isolation: change of one conversation by another", exact.leaked(model.eval(), rows, pad))
        model.train().to(torch.bfloat16)
        read = {layout: exact.read(model, exact.batches(layout, rows, pad)) for layout in exact.LAYOUTS}
        theirs = [exact.apart(read[one], read[other]) for one, other in combinations(exact.LAYOUTS[:3], 2)]
        self.tell(name, "tree against separate rows, bf16", exact.apart(read["tree"], read["alone"]), theirs)
        off = {layout: exact.apart(found, truth) for layout, found in read.items()}
        self.tell(name, "tree in bf16 against float32", off.pop("tree"), list(off.values()), CHANCE)
        if name == GEMMA:
            self.table.give("exact", f"{name}, NEFTune noise over the paper's", exact.noise(model, rows, pad))

    def tell(self, name: str, what: str, found: tuple[float, float], theirs: Sequence[tuple[float, float]] = (), more: float = 1) -> None:
        """Two differences, held to the largest of TRL's where there are some, times `more`."""
        for i, of in enumerate(("hidden states", "gradients")):
            most = max((each[i] for each in theirs), default=None)
            bound, note = (None, "") if most is None else (more * most, f"TRL's layouts {most:.1e}")
            self.table.give("exact", f"{name}, {what}, {of}", found[i], most=bound, note=note)

    def quantised(self) -> None:
        recipe = recipe_of(self.base(GEMMA), self.scale, quantised=True)
        model = load_model(recipe.model, recipe.dtype, recipe.quantization)
        found = exact.dequantised(model, rows_of("chat", 1)[0], load_tokenizer(recipe).pad_token_id)
        self.table.give("exact", f"{GEMMA}, NF4 against its dequantised weights", found)

    def fast(self, some: Sequence[Case], kept: float) -> None:
        """The cases of one model in one precision."""
        bench: list[fast.Bench] = []

        def measure(case: Case) -> None:
            if not bench:
                bench.append(fast.Bench(self.base(case.model), self.scale, case.quantised, self.rate, ROUNDS[self.scale], self.layouts))
            bench[0].measure(case, self.table, self.budget.until(kept))

        for case in some:
            self.guarded("fast", case.name, partial(measure, case), kept)

    def merge(self) -> None:
        recipe = recipe_of(self.base(GEMMA), self.scale, quantised=True)
        proof = proven(recipe, rows_of("chat", 12)[0], self.folder)
        if "kl" not in proof:
            raise RuntimeError("; ".join(proof["faults"]))
        values = (proof["kl"], len(proof["faults"]), float(proof["generations_equal"]))
        for name, value in zip(MERGE, values, strict=True):
            self.table.give("exact", f"{GEMMA}, {name}", value, "; ".join(proof["faults"]) if name == MERGE[1] else "")

    def journey(self) -> None:
        (self.folder / "journey").mkdir()
        found = travelled(self.scale, self.folder / "journey", self.budget.left)
        proof = found["merge"]
        for name, value in zip(JOURNEY, (len(proof.get("faults", [])), proof["kl"], found["seconds"]), strict=True):
            self.table.give("journey", name, value)


def room() -> Path | None:
    """Where 40 GB fit, in memory if they do; `None` for the system's own place."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > 40e9 else None


def main(words: Sequence[str] | None = None) -> Table:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Every figure of this project on a GPU, as one table.")
    parser.add_argument("--scale", choices=("auto", "full", "tiny"), default="auto", help="auto: full where there is a CUDA device")
    parser.add_argument("--out", type=Path, help="folder for the results; at full scale benchmarks/results")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    asked = parser.parse_args(words)
    scale = ("full" if cuda() else "tiny") if asked.scale == "auto" else asked.scale
    if scale == "full" and not cuda():
        parser.error("no CUDA device here; --scale tiny runs everything but the kernels")
    hush()
    datasets.disable_progress_bars()
    on = described(scale)
    with tempfile.TemporaryDirectory(dir=room() if scale == "full" else None) as folder:
        run = Run(scale, Path(folder), Budget(60 * asked.minutes))
        run.all()
    print("\n".join([", ".join(f"{name} {value}" for name, value in on.items()), *run.table.lines()]))
    keep(run.table, on, asked.out, scale)
    return run.table


def keep(table: Table, on: dict[str, Any], out: Path | None, scale: str) -> None:
    """The results file, the table and the picture, where they belong."""
    name = re.sub(r"[^a-z0-9]+", "-", str(on["device"]).lower()).strip("-")
    folder = out or (ROOT / "benchmarks" / "results" if scale == "full" else None)
    if folder is None:
        return
    table.write(on, folder, name)
    picture.draw(table, on, (folder if out else ROOT / "docs") / f"{name}.svg")


if __name__ == "__main__":
    main()
