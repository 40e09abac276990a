"""Datasets of the Hub or of a folder, and Parquet files, read row by row; what is damaged is named by its file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..hub import trouble
from ..recipe import Source

PARQUET = ".parquet"


def read_table(source: Source, faults: list[str]) -> Iterator[tuple[dict, str]]:
    """The rows that `datasets.load_dataset` gives, each with `dataset:row`; faults are appended, not raised.

    Args:
        source: a Hub id, a folder, or a `.parquet` file.
        faults: why it cannot be loaded, or not to its end; of a local folder with the file that cannot be read.
    """
    number = -1
    try:
        for number, row in enumerate(loaded(source)):
            yield row, f"{source}:{number}"
    except Exception as error:  # the Hub, the network and every file format raise their own
        faults.append(broken(source, number, error))


def loaded(source: Source, streaming: bool = False) -> Any:
    """What `datasets` makes of it: a `Dataset`, or an `IterableDataset` that reads as it goes."""
    import datasets

    if Path(source.path).suffix == PARQUET:
        return datasets.load_dataset("parquet", data_files=source.path, split="train", streaming=streaming)
    return datasets.load_dataset(source.path, source.name, split=source.split, streaming=streaming)


def broken(source: Source | str, number: int, error: Exception) -> str:
    """The fault of a dataset that gives no further row after this one; of one in memory, named by a text, the error itself."""
    if isinstance(source, str):
        return f"{source}: {_read_so_far(number)}{_root(error)}"
    path = Path(source.path)
    if path.suffix == PARQUET and not path.is_file():
        return f"{source}: no such file"
    return _damaged(path) or trouble(error, source.path, "dataset") or f"{source}: {_read_so_far(number)}{_root(error)}"


def _damaged(path: Path) -> str:
    """The first Parquet file there that Arrow cannot read to its end, and why; `load_dataset` does not say which it was."""
    import pyarrow.parquet as parquet

    for file in [path] if path.is_file() else sorted(path.rglob(f"*{PARQUET}")) if path.is_dir() else []:
        try:
            with parquet.ParquetFile(file) as opened:
                for _ in opened.iter_batches():
                    pass
        except Exception as error:  # Arrow's own, and those of the libraries that it decompresses with
            return f"{file}: not a whole Parquet file: {_reason(error)}; is it cut off or damaged? Copy or download it again"
    return ""


def _read_so_far(number: int) -> str:
    return "cannot be loaded: " if number < 0 else f"cannot be read after row {number}: "


def _root(error: BaseException) -> str:
    """What it was to begin with: `datasets` says in its own error only that there was one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {_reason(error)}"


def _reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
