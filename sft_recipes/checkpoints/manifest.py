"""What a checkpoint consists of, `manifest.json`: every file with its size and SHA-256. It is written last, so one that has it is whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

NAME = "manifest.json"


def files(folder: Path) -> list[str]:
    """Every file in a folder but the manifest, as paths from there, in order."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file() and file.name != NAME)


def digests(folder: Path, names: Sequence[str]) -> dict[str, dict[str, int | str]]:
    """Size in bytes and SHA-256 of files, each flushed to the disk first.

    Args:
        folder: of the checkpoint.
        names: of files in it; several processes can share them.
    """
    found: dict[str, dict[str, int | str]] = {}
    for name in names:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
            found[name] = {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    return found


def seal(folder: Path, found: dict[str, dict[str, int | str]]) -> None:
    """Write the manifest and flush the folder: from now on it is whole.

    Args:
        folder: of the checkpoint, every file of it written.
        found: of all of them, from `digests`.
    """
    with (folder / NAME).open("w", encoding="utf-8") as file:
        json.dump({"files": found}, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    flush(folder)


def flush(folder: Path) -> None:
    """Have the disk know what names a folder holds."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or `None`; every byte of it is read.

    A file that the manifest does not name is no fault: nothing was promised of it.
    """
    try:
        promised = json.loads((folder / NAME).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"it has no {NAME}: it was not written to its end, or not by this project"
    except (ValueError, KeyError, TypeError, OSError) as error:
        return f"its {NAME} cannot be read: {error}"
    return next((wrong for name in sorted(promised) if (wrong := _wrong(folder / name, name, promised[name]))), None)


def _wrong(file: Path, name: str, promised: dict[str, int | str]) -> str | None:
    if not file.is_file():
        return f"{name} is missing"
    if (size := file.stat().st_size) != promised["bytes"]:
        return f"{name} has {size:,} bytes, {promised['bytes']:,} were written"
    with file.open("rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() != promised["sha256"]:
            return f"{name} is not what was written: its SHA-256 differs"
    return None
