"""`python -m benchmarks.size 1000000`: so many short conversations, from a JSONL file to the rows that a trainer gets, mapped from disk.

The whole check runs in a process of its own, as before every training: reading, supervision, packing, duplicates, diversity. Four times a
second the memory of that process and of all that it began is summed (`VmRSS` of each, mapped files and shared pages counted in each, so
that it is an upper bound; `RssAnon`, what they hold for themselves, beside it). The first start finds an empty cache; a second
one, with `--again`, that of the first. With `--streaming`, the same file is trained on for some steps, read whole and as a stream.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from sft_recipes.tiny.talks import talks

WORKER = """
import sys, time
started = time.perf_counter()
from sft_recipes import preflight
from sft_recipes.config import resolve
from sft_recipes.rows import dataset
imported = time.perf_counter()
report = preflight.check(resolve("lima", "tiny", data=sys.argv[1], held_out=200))
assert not report.faults, report.faults
layout, prepared = report.layout, report.prepared
rows = dataset(layout.packed.rows if layout.packed else prepared.rows)
account = prepared.train.supervision
print(f"{account.conversations:,} conversations, {account.tokens:,} tokens, {len(rows):,} packed rows", end=", ")
print(f"{layout.packed.empty:.1%} empty, {time.perf_counter() - imported:.0f} s after {imported - started:.0f} s of imports")
"""

TRAINER = """
import sys, time
from transformers import TrainerCallback
from trl import SFTTrainer
from sft_recipes import build_trainer
began = time.perf_counter()
class Clock(TrainerCallback):
    def on_step_end(self, *args, **kwargs):
        self.times = [*getattr(self, "times", []), time.perf_counter()]
fields = dict(data=sys.argv[1], streaming=sys.argv[2], held_out=200, max_steps=100, logging_steps=100, per_device_train_batch_size=8)
trainer = build_trainer("lima", "tiny", **fields, eval_strategy="no", save_strategy="no", report_to="none", output_dir=sys.argv[3])
trainer.add_callback(clock := Clock())
SFTTrainer.train(trainer)
steps = clock.times
print(f"first step after {steps[0] - began:.1f} s, then {(len(steps) - 1) / (steps[-1] - steps[0]):.2f} steps a second", end=", ")
if trainer.stream is not None:
    began, at = time.perf_counter(), trainer.stream._served[0].start
    while trainer.stream._served[-1].place["epoch"] == 0:
        trainer.stream._read_on()
        trainer.stream._served[:-1] = []
    account, seconds = trainer.stream._served[-1].before, time.perf_counter() - began
    print(f"the whole stream, {account.sums['conversations']:,} conversations in {account.windows} windows, in {seconds:.0f} s", end=", ")
"""


def main() -> None:
    count, again = int((sys.argv[1:] or ["100000"])[0]), "--again" in sys.argv
    with tempfile.TemporaryDirectory(dir=os.environ.get("HF_DATASETS_CACHE")) as folder:
        file = Path(folder) / "talks.jsonl"
        with file.open("w") as lines:
            lines.writelines(json.dumps({"messages": row["messages"]}) + "\n" for row in islice(talks(held_out=False), count))
        print(f"{file.stat().st_size / 1e6:,.0f} MB of JSONL, {len(os.sched_getaffinity(0))} cores", flush=True)
        for way in ("false", "true") if "--streaming" in sys.argv else ():
            print(f"streaming {way}:", end=" ", flush=True)
            _measured([TRAINER, str(file), way, folder], file, count)
        for _ in range(1 + again) if "--streaming" not in sys.argv else ():
            _measured([WORKER, str(file)], file, count)


def _measured(words: list[str], file: Path, count: int) -> None:
    """One start, and its line."""
    environment = {**os.environ, "HF_DATASETS_CACHE": str(file.parent / "cache"), "HF_HUB_OFFLINE": "1"}
    started, peak, own = time.perf_counter(), 0, 0
    with subprocess.Popen([sys.executable, "-c", *words], env=environment) as worker:
        while worker.poll() is None:
            peak = max(peak, held(worker.pid, "VmRSS"))
            own = max(own, held(worker.pid, "RssAnon"))
            time.sleep(0.25)
    seconds = time.perf_counter() - started
    print(
        f"size       {count:,} conversations  {seconds:,.0f} s  {count / seconds:,.0f} a second  "
        f"peak {peak / 1e9:.2f} GB, {own / 1e9:.2f} GB without mapped files  exit {worker.returncode}",
        flush=True,
    )


def held(process: int, name: str) -> int:
    """A figure of `/proc/PID/status`, in bytes, of a process and all beneath it."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        tasks = Path(f"/proc/{process}/task").iterdir()
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it has just ended
        return 0
    own = next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
    return own + sum(held(child, name) for child in children)


if __name__ == "__main__":
    main()
