"""The folder `checkpoints/` of a run: a new checkpoint comes in whole, old ones leave whole, the newest good one is found."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from . import manifest

SAVING, LEAVING = ".saving", ".leaving"


class Found(NamedTuple):
    """What there is to continue from.

    Attributes:
        checkpoint: the newest good one; `None` where there is none.
        refused: one line for each newer one, with what is wrong with it.
    """

    checkpoint: Path | None
    refused: list[str]


def newest(folder: Path) -> Found:
    """The newest checkpoint that is whole, by its step: a clock may have jumped since.

    Args:
        folder: `checkpoints/` of a run.
    """
    refused: list[str] = []
    for path in map(Path, reversed(sort_checkpoints(str(folder)))):
        fault = manifest.fault(path)
        if fault is None:
            return Found(path, refused)
        refused.append(f"{path} is not continued from: {fault}")
    return Found(None, refused)


def good(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint that is to be loaded, in words; `None` for nothing."""
    return manifest.fault(checkpoint) if checkpoint.is_dir() else "it is not there any more"


@contextmanager
def saving(folder: Path, first: bool) -> Iterator[Path]:
    """Where a checkpoint is built, beside its place; nothing of it is left where it was not finished.

    Args:
        folder: `checkpoints/` of a run.
        first: whether this is the process that clears up.
    """
    place = folder / SAVING
    if first:
        clear(folder)
    try:
        yield place
    finally:
        if first:
            shutil.rmtree(place, ignore_errors=True)


def clear(folder: Path) -> None:
    """Remove what a process left that was killed while it saved or deleted."""
    for name in (SAVING, LEAVING):
        shutil.rmtree(folder / name, ignore_errors=True)


def put(built: Path, folder: Path) -> Path:
    """Give a finished checkpoint its name; one of the same step makes room, which is not the newest good one any more."""
    target = folder / built.name
    if target.exists():
        _leave(target)
    built.rename(target)
    manifest.flush(folder)
    return target


def rotate(folder: Path, limit: int | None, kept: Path | None) -> None:
    """Delete the oldest checkpoints beyond a limit, each at a stroke: a half of one is never there.

    transformers' `rotate_checkpoints` goes by the time on the disk and deletes file by file. To be called when the newest is
    whole; that one stays, and `kept` does.

    Args:
        folder: `checkpoints/` of a run.
        limit: how many stay, `save_total_limit`; `None` or 0 for all.
        kept: the one with the best score.
    """
    if not limit or limit < 0:
        return
    held = [Path(path) for path in sort_checkpoints(str(folder))]
    protected = {held[-1], *([kept] if kept in held else [])}
    free = [path for path in held if path not in protected]
    for path in free[: max(0, len(held) - max(limit, len(protected)))]:
        _leave(path)


def _leave(checkpoint: Path) -> None:
    gone = checkpoint.parent / LEAVING
    shutil.rmtree(gone, ignore_errors=True)
    checkpoint.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def name(step: int) -> str:
    """What the checkpoint after a step is called."""
    return f"{PREFIX_CHECKPOINT_DIR}-{step}"
