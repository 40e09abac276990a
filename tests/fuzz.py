"""Mutated data files, recipes and command lines, thousands of them: never a traceback, never a silent loss.

`make fuzz`, or `python tests/fuzz.py --files 20000 --commands 2000`; a case that fails prints how to repeat it alone. `make test`
runs some hundreds (`test_fuzz.py`).
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

SEED, CHUNK = "sft", 50
WHOLE = 25  # of so many files one goes through the whole preflight


def quiet() -> None:
    """No network, no bars, no cache of another's, no tokenizer made twice."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "TOKENIZERS_PARALLELISM": "false"}
    os.environ.setdefault("HF_DATASETS_CACHE", tempfile.mkdtemp(prefix="sft-recipes-fuzz-"))


def one_file(case: int, folder: Path, seed: str = SEED) -> str:
    """Of a case what became of it."""
    import fuzz_data
    import mutated_data

    file = mutated_data.file_of(f"{seed}:file:{case}", folder)
    try:
        return fuzz_data.judged(file, whole=case % WHOLE == 0)
    finally:
        file.unlink(missing_ok=True)


def one_command(case: int, folder: Path, seed: str = SEED) -> str:
    """Of a case what became of it."""
    import fuzz_commands

    return fuzz_commands.judged(f"{seed}:command:{case}", folder)


KINDS: dict[str, Callable[[int, Path, str], str]] = {"files": one_file, "commands": one_command}


def several(job: tuple[str, int, int, str]) -> tuple[Counter, list[str]]:
    """Cases `start` to `end` of a kind, in a folder of their own: what became of them, and the failures with what repeats them."""
    kind, start, end, seed = job
    counts, failures, before = Counter(), [], Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for case in range(start, end):
                Path(os.environ.get("FUZZ_CASE", os.devnull)).write_text(f"{kind} {case}")
                try:
                    counts[KINDS[kind](case, Path(folder), seed)] += 1
                except Exception as error:
                    where = traceback.extract_tb(error.__traceback__)[-1]
                    failures.append(
                        f"{kind} {case}: {type(error).__name__}: {str(error)[:600]} ({Path(where.filename).name}:{where.lineno})\n"
                        f"    repeat it: python tests/fuzz.py --kind {kind} --case {case} --seed {seed}"
                    )
        finally:
            os.chdir(before)
    return counts, failures


def prepared_process() -> None:
    """What every process needs once: our cached tokenizer, and transformers silent."""
    faulthandler.enable()
    quiet()
    import datasets

    from sft_recipes import prepare
    from sft_recipes.config import hush

    hush()
    datasets.disable_progress_bars()
    loaded, load = {}, prepare.load_tokenizer
    prepare.load_tokenizer = lambda recipe: loaded.get(recipe.model) or loaded.setdefault(recipe.model, load(recipe))  # type: ignore


def main() -> int:
    """Every case; 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--commands", type=int, default=2_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", default=SEED)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--case", type=int)
    given = parser.parse_args()
    quiet()
    if given.case is not None:
        return repeat(given.kind or "files", given.case, given.seed)
    failed = 0
    for kind in [given.kind] if given.kind else KINDS:
        began, counts = time.perf_counter(), Counter()
        total = getattr(given, kind)
        jobs = [(kind, start, min(start + CHUNK, total), given.seed) for start in range(0, total, CHUNK)]
        with ProcessPoolExecutor(given.processes, get_context("spawn"), prepared_process) as pool:
            for found, failures in pool.map(several, jobs):  # a process that dies of a case breaks the pool: it is never passed over
                counts += found
                failed += len(failures)
                for failure in failures:
                    print(failure, flush=True)
        shown = ", ".join(f"{number:,} {what}" for what, number in counts.most_common())
        print(f"{kind}: {shown}, {total - counts.total():,} failed; {time.perf_counter() - began:.0f} s", flush=True)
    return int(failed > 0)


def repeat(kind: str, case: int, seed: str) -> int:
    """One case with its traceback; the file or command line is shown."""
    prepared_process()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        if kind == "files":
            import mutated_data

            print(mutated_data.file_of(f"{seed}:file:{case}", Path(folder)).read_bytes()[:3000])
        print(KINDS[kind](case, Path(folder), seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
