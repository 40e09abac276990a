"""Rows to a batch: padded on the right by TRL's collator, or laid together; and each conversation of it alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

Batch = dict[str, Any]

INDICES = {"subtree_end": "input_ids", "owner": "sources"}  # columns that point into a row, and what each counts


def collated(collate: Callable[[list[dict]], Batch], examples: list[dict]) -> Batch:
    """A batch of rows, with the `source` of each conversation in it.

    Args:
        collate: TRL's, for separate rows: pads on the right, or lays all of them in one row (`padding_free`).
        examples: separate rows or packed ones, as the dataset has them.

    Returns:
        tensors of shape `(rows, length)`, or `(1, length)` of packed rows; and `source`, a list of texts.
    """
    if "subtree_end" in examples[0]:
        return _laid_together(examples)
    batch = {**collate(examples), "source": [example.get("source", "a row without source") for example in examples]}
    if "loss_weights" in examples[0]:
        weights = [torch.tensor(example["loss_weights"]) for example in examples]
        rows = weights if len(batch["labels"]) == len(examples) else [torch.cat(weights)]
        batch["loss_weights"] = torch.zeros(batch["labels"].shape)
        for row, found in zip(batch["loss_weights"], rows, strict=True):
            row[: len(found)] = found
    return batch


def _laid_together(examples: list[dict]) -> Batch:
    """Packed rows one behind the other as one: trees beside trees, and nothing to pad."""
    batch: Batch = {"source": [source for example in examples for source in example["sources"]]}
    for name in examples[0].keys() - {"sources"}:
        columns = [torch.tensor(example[name]) for example in examples]
        if name in INDICES:
            before = 0
            for column, example in zip(columns, examples, strict=True):
                column += torch.where(column >= 0, before, 0).to(column.dtype)
                before += len(example[INDICES[name]])
        batch[name] = torch.cat(columns)[None]
    return {name: value.long() if name in ("input_ids", "labels") else value for name, value in batch.items()}


def one_by_one(batch: Batch) -> Iterator[tuple[str, Batch]]:
    """Each conversation of a batch as a batch of its own; one long row of documents (`padding_free`) stays whole."""
    sources = batch["source"]
    if "owner" in batch:
        yield from ((source, _alone(batch, number)) for number, source in enumerate(sources))
    elif len(sources) != len(batch["input_ids"]):
        yield ", ".join(sources), batch
    else:
        yield from ((source, {name: value[i : i + 1] for name, value in batch.items()}) for i, source in enumerate(sources))


def first_rows(batch: Batch, count: int) -> Batch:
    """Of a batch of separate rows the first, and no more padding than they need; of rows laid in one (`padding_free`) likewise."""
    if len(batch["input_ids"]) == len(batch["source"]):
        mask = batch["attention_mask"][:count]
        longest = int(mask.sum(1).max())
        found = {name: value[:count, :longest] for name, value in batch.items() if name != "source"}
    else:
        ends = batch["cu_seq_lens_q"][: count + 1]  # TRL's, with the largest difference beside it
        found = {name: value[:, : ends[-1]] for name, value in batch.items() if isinstance(value, Tensor) and value.ndim == 2}
        found |= dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), ends)
        found |= dict.fromkeys(("max_length_q", "max_length_k"), int(ends.diff().max()))
    return {**found, "source": batch["source"][:count]}


def _alone(batch: Batch, number: int) -> Batch:
    """What one conversation learns, and what that sees: a smaller forest."""
    columns = {name: value[0] for name, value in batch.items() if isinstance(value, Tensor)}
    learned = (columns["owner"] == number) & (columns["labels"] >= 0)
    end = columns["subtree_end"].long()
    before = pad(learned.cumsum(0), (1, 0))
    kept = before[end] > before[:-1]
    columns["labels"] = columns["labels"].where(learned, -100)
    columns["subtree_end"] = pad(kept.cumsum(0), (1, 0))[end]
    return {"source": [batch["source"][number]], **{name: value[kept][None] for name, value in columns.items()}}
