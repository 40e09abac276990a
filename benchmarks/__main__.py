"""`make bench`: one line per workload, its name first and its ratio to stock TRL last.

The rows benchmark's figures go to `results/rows.json` beside this file, and their picture to `docs/rows.svg`.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets

from sft_recipes.config import hush

from . import encoding, picture, rows
from .workloads import WORKLOADS

ROOT = Path(__file__).parent.parent
RESULTS, PICTURE = ROOT / "benchmarks" / "results" / "rows.json", ROOT / "docs" / "rows.svg"


def main() -> None:
    hush()
    datasets.disable_progress_bars()
    print(encoding.line(), flush=True)
    results = []
    for name in WORKLOADS:
        results.append(rows.compare(name))
        print(results[-1].line(), flush=True)
    keep(results, RESULTS)
    picture.draw(results, PICTURE)


def keep(results: Sequence[rows.Result], file: Path) -> None:
    """Write the figures with what they were measured on; memory in bytes, `ours` and `trl` in supervised tokens per second."""
    on: dict[str, Any] = {"date": date.today().isoformat(), "cpu": _cpu(), "cores": os.cpu_count(), "threads": rows.THREADS}
    on["versions"] = {name: version(name) for name in ("torch", "transformers", "trl")}
    found = [{**each._asdict(), "ratio": round(each.ratio, 3)} for each in results]
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({**on, "workloads": found}, indent=2) + "\n", encoding="utf-8")


def _cpu() -> str:
    """The model's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
