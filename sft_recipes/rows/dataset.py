"""Rows, separate or packed, as a `datasets.Dataset`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


def dataset(rows: Sequence[dict[str, Any]]) -> Dataset:
    """By column and with their types, which costs a quarter of `from_list`.

    Args:
        rows: separate or packed, all with the same columns; a row's numbers are a list or an array.
    """
    import pyarrow as pa
    from datasets import Dataset

    numbers = dict.fromkeys(("input_ids", "labels", "position_ids", "subtree_end", "owner"), pa.list_(pa.int32()))
    types = numbers | {"loss_weights": pa.list_(pa.float32()), "sources": pa.list_(pa.string())}
    return Dataset(pa.table({name: pa.array([row[name] for row in rows], types.get(name, pa.string())) for name in rows[0]}))
