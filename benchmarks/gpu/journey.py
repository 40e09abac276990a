"""The main job at its tiny scale, as a person types it, on whatever device there is: through to the merge proof."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

from sft_recipes import TINY

SIZES = {"full": (1000, 60, 120), "tiny": (24, 4, 2)}  # conversations, held-out ones, steps


def travelled(scale: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Train `gemma-tools`.

    Args:
        scale: how much of it.
        folder: where it runs.
        seconds: after which it is ended.

    Returns:
        the run's `metrics.json`, and `seconds`.

    Raises:
        RuntimeError: it failed, with its last words, or took longer.
    """
    count, held, steps = SIZES[scale]
    parts = {"data": (TINY / "gemma_tools.train.jsonl", count), "held_out": (TINY / "gemma_tools.held_out.jsonl", held)}
    for name, (file, lines) in parts.items():
        with file.open(encoding="utf-8") as source:
            (folder / f"{name}.jsonl").write_text("".join(islice(source, lines)), encoding="utf-8")
    words = [sys.executable, "-m", "sft_recipes", "train", "gemma-tools", "--scale", "tiny", "--max_steps", str(steps)]
    words += [word for name in parts for word in (f"--{name}", f"{name}.jsonl")]
    words += ["--report_to", "none", "--eval_strategy", "no", *(["--max_new_tokens", "8"] if scale == "tiny" else [])]
    started = time.perf_counter()
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"no end after {seconds:.0f} s") from error
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or done.stdout.strip())[-300:])
    metrics: dict[str, Any] = json.loads((folder / "runs" / "gemma-tools" / "metrics.json").read_text(encoding="utf-8"))
    return {**metrics, "seconds": time.perf_counter() - started}
