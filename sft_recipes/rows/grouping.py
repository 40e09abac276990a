"""Length-grouped batches, for training without packing: rows of similar length together, the batches in random order.

After `transformers.trainer_pt_utils.get_length_grouped_indices`, which leaves its batches sorted: over and over, from long rows to
short ones, so that the gradient of a step depends on when it is taken. Here the batches are shuffled, for the same padding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

MEGABATCH = 50  # batches sorted together, of a quarter of the dataset at most; upstream's numbers


class Shuffled(Sampler[int]):
    """Indices of rows, every one once, in another order each epoch.

    The order depends on the seed and the epoch alone, and is that of `accelerate.data_loader.SeedableRandomSampler`: the same on every
    process, on however many, and in a resumed run.

    Args:
        count: rows.
        seed: `None` is the seed that torch was given last.
    """

    def __init__(self, count: int, seed: int | None = None):
        self.count = count
        self.seed = torch.initial_seed() if seed is None else seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        yield from self.order(torch.Generator().manual_seed((self.seed + self.epoch) % 2**64))
        self.epoch += 1

    def order(self, generator: torch.Generator) -> list[int]:
        """One epoch's."""
        return torch.randperm(self.count, generator=generator).tolist()

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loaders and by transformers at the start of each epoch, counted from 0."""
        self.epoch = epoch


class LengthGrouped(Shuffled):
    """The same, where consecutive slices of `batch` have similar lengths.

    Args:
        lengths: tokens of each row.
        batch: rows that all processes together take in one optimiser step, as in transformers' own grouping.
        seed: as for `Shuffled`.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int | None = None):
        super().__init__(len(lengths), seed)
        self.lengths, self.batch = lengths, batch

    def order(self, generator: torch.Generator) -> list[int]:
        """One epoch's; see `grouped`."""
        return grouped(self.lengths, self.batch, generator)


def grouped(lengths: Sequence[int], batch: int, generator: torch.Generator) -> list[int]:
    """One epoch's order.

    Args:
        lengths: tokens of each row.
        batch: rows.
        generator: draws which rows may meet, and the order of the batches.

    Returns:
        the indices of `lengths`, each once. The batch with the longest row comes first, so that a memory too small is seen at once;
        a batch that is not full comes last, or it would shift those behind it. It holds a random part of the lengths.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    size = batch * max(1, min(MEGABATCH, len(order) // (4 * batch)))
    full, rest = [], []
    for start in range(0, len(order), size):
        rows = sorted(order[start : start + size], key=lambda row: lengths[row])
        if short := len(rows) % batch:
            at = int(torch.randint(len(rows) - short + 1, (), generator=generator))
            rest, rows = rows[at : at + short], rows[:at] + rows[at + short :]
        full += [rows[i : i + batch] for i in range(0, len(rows), batch)]
    full = [full[i] for i in torch.randperm(len(full), generator=generator).tolist()]
    longest = max(range(len(full)), key=lambda i: lengths[full[i][-1]], default=0)
    full[:1], full[longest : longest + 1] = full[longest : longest + 1], full[:1]
    return [row for rows in [*full, rest] for row in rows]


def drawn_from(*numbers: int) -> int:
    """A seed for torch that differs for different numbers: 63 bits of the BLAKE2 hash of their digits."""
    digest = hashlib.blake2b(" ".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
