"""Batches of rows of similar length: as little padding as upstream's, and no trend of length over an epoch."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import skip_first_batches
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import get_length_grouped_indices

from sft_recipes.rows.grouping import LengthGrouped, grouped

BATCH = 8


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def lengths_of(count, seed=0):
    """Log-normal lengths, median 300, at most 2,048 tokens."""
    return (torch.randn(count, generator=seeded(seed)) * 0.7 + 5.7).exp().clamp(8, 2048).long().tolist()


def batches(order, lengths, batch=BATCH):
    return [[lengths[row] for row in order[i : i + batch]] for i in range(0, len(order), batch)]


def padded(order, lengths, batch=BATCH):
    """Positions of all batches, each padded to its longest row."""
    return sum(len(found) * max(found) for found in batches(order, lengths, batch))


def step_within_sweep(order, lengths, sweep):
    """How a batch's tokens go with its place among `sweep` successive ones: the correlation, from -1 to 1."""
    tokens = torch.tensor([sum(found) for found in batches(order, lengths)[1:]], dtype=torch.float)  # the first is chosen
    return torch.corrcoef(torch.stack([tokens, torch.arange(1.0, len(tokens) + 1) % sweep]))[0, 1].item()


@pytest.mark.parametrize("batch", [1, 3, 8, 64])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 63, 64, 65, 399, 400, 401, 3001])
def test_every_row_comes_once(count, batch):
    assert sorted(grouped(lengths_of(count), batch, seeded(1))) == list(range(count))


def test_the_batch_with_the_longest_row_comes_first():
    lengths = lengths_of(800)
    lengths[371] = 5000
    for seed in range(20):
        assert max(batches(grouped(lengths, BATCH, seeded(seed)), lengths)[0]) == 5000


@pytest.mark.parametrize("count", [200, 1003, 8000])
def test_there_is_no_more_padding_than_upstream_has(count):
    lengths = lengths_of(count)
    ours = sum(padded(grouped(lengths, BATCH, seeded(seed)), lengths) for seed in range(10))
    upstream = sum(padded(get_length_grouped_indices(lengths, BATCH, generator=seeded(seed)), lengths) for seed in range(10))
    assert ours <= 1.02 * upstream
    assert ours < 0.8 * sum(padded(torch.randperm(count, generator=seeded(seed)).tolist(), lengths) for seed in range(10))


def test_the_length_of_a_batch_does_not_depend_on_when_it_comes_as_it_does_upstream():
    lengths, sweep = lengths_of(4000), 50
    ours = [step_within_sweep(grouped(lengths, BATCH, seeded(seed)), lengths, sweep) for seed in range(20)]
    upstream = [step_within_sweep(get_length_grouped_indices(lengths, BATCH, generator=seeded(seed)), lengths, sweep) for seed in range(20)]
    assert abs(sum(ours) / 20) < 0.03 and max(map(abs, ours)) < 0.2
    assert sum(upstream) / 20 < -0.8


def test_the_short_batch_at_the_end_has_lengths_like_the_others():
    lengths = lengths_of(404)
    last = [sum(batches(grouped(lengths, BATCH, seeded(seed)), lengths)[-1]) / 4 for seed in range(300)]
    assert sum(last) / 300 == pytest.approx(sum(lengths) / 404, rel=0.15)


def test_an_epoch_is_another_order_and_the_seed_decides_it():
    lengths = lengths_of(300)
    torch.manual_seed(7)
    sampler = LengthGrouped(lengths, BATCH)
    first, second = list(sampler), list(sampler)
    assert len(sampler) == 300 and sorted(first) == sorted(second) and first != second
    torch.rand(5)  # what training draws meanwhile changes nothing
    again = LengthGrouped(lengths, BATCH)
    assert list(again) == first
    torch.manual_seed(8)
    assert list(LengthGrouped(lengths, BATCH)) != first
    assert list(LengthGrouped(lengths, BATCH, seed=7)) == first


def test_a_resumed_run_takes_the_batches_that_were_left():
    lengths = lengths_of(100)

    def loader():
        found = DataLoader(range(100), batch_size=BATCH, sampler=LengthGrouped(lengths, BATCH, seed=3))
        return Accelerator(cpu=True).prepare(found)

    whole = loader()
    epochs = []
    for epoch in range(2):
        whole.set_epoch(epoch)
        epochs.append([batch.tolist() for batch in whole])
    resumed = skip_first_batches(loader(), 4)
    resumed.set_epoch(1)
    assert [batch.tolist() for batch in resumed] == epochs[1][4:] and epochs[0] != epochs[1]
