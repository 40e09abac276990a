"""Rows as a `datasets.Dataset`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


def dataset(rows: Sequence[dict[str, Any]]) -> Dataset:
    """By column and with their types, which costs a quarter of `from_list`."""
    import pyarrow as pa
    from datasets import Dataset

    types = {"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32()), "loss_weights": pa.list_(pa.float32())}
    return Dataset(pa.table({name: pa.array([row[name] for row in rows], types.get(name, pa.string())) for name in rows[0]}))
