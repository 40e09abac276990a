"""Folders that are written whole or not at all: built beside their place, under a name that begins with a dot, and renamed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .recipe import RecipeError


@contextmanager
def unfinished(target: Path, name: str = "") -> Iterator[Path]:
    """A folder beside `target` to build it in, gone afterwards unless it has been renamed.

    Args:
        target: where the folder will be.
        name: told apart from another of the same target.

    Raises:
        RecipeError: the disk was full; nothing is left behind.
    """
    folder = target.with_name(f".{target.name}{name and f'.{name}'}.unfinished")
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    try:
        yield folder
    except (OSError, SafetensorError) as error:
        raise RecipeError(f"{target}: it could not be written, nothing of it is left: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put(folder: Path, target: Path) -> None:
    """Rename a finished folder into place; one that is there already makes room at the last moment."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.is_dir():
        target.rename(old)
    folder.rename(target)
    shutil.rmtree(old, ignore_errors=True)
