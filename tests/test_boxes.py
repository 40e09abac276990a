"""Things laid into boxes: each once, none over its room, as few as best fit finds, and long and short ones in each."""

import random
from statistics import mean, pstdev

import pytest

from sft_recipes.rows.boxes import best_fit, fill


def lengths(seed, count, longest):
    """Of chats: log-normal, median 300 tokens."""
    rng = random.Random(seed)
    return [max(20, min(longest, round(rng.lognormvariate(5.7, 0.8)))) for _ in range(count)]


def spread(boxes):
    """Standard deviation of the number of things in a box, relative to their mean."""
    return pstdev(map(len, boxes)) / mean(map(len, boxes))


def test_best_fit_lays_each_thing_into_one_box_and_fills_them():
    boxes = best_fit([5, 2, 7, 3, 3], 10)
    assert boxes == [[2, 3], [0, 4, 1]]
    sizes = random.Random(0).choices(range(1, 500), k=2000)
    boxes = best_fit(sizes, 1000)
    assert sorted(i for box in boxes for i in box) == [*range(2000)]
    assert all(sum(sizes[i] for i in box) <= 1000 for box in boxes) and len(boxes) == -(-sum(sizes) // 1000)


@pytest.mark.parametrize("size", [0, 11])
def test_what_fits_into_no_box_is_refused(size):
    with pytest.raises(ValueError, match="sizes from 1 to 10"):
        best_fit([5, size], 10)


@pytest.mark.parametrize(("count", "longest", "room"), [(3000, 2048, 2048), (3000, 2048, 4096), (300, 1000, 4096), (5000, 1000, 16000)])
def test_each_box_holds_long_and_short_things_in_nearly_as_few_boxes(count, longest, room):
    """Best fit decreasing lays the longest together: its first boxes hold a few things, its last ones very many."""
    sizes = lengths(count, count, longest)
    tight, boxes = best_fit(sizes, room), fill(sizes, room)
    assert sorted(i for box in boxes for i in box) == [*range(count)]
    assert all(sum(sizes[i] for i in box) <= room for box in boxes)
    assert len(boxes) <= 1.01 * len(tight)
    assert spread(boxes) < 0.3 and spread(boxes) < 0.4 * spread(tight)


@pytest.mark.parametrize("seed", range(50))
def test_whatever_the_sizes_nothing_is_lost_and_no_box_overflows(seed):
    rng = random.Random(seed)
    room = rng.randint(1, 60)
    sizes = [rng.randint(1, room) for _ in range(rng.randint(0, 300))]
    boxes = fill(sizes, room)
    assert sorted(i for box in boxes for i in box) == [*range(len(sizes))] and all(boxes)
    assert all(sum(sizes[i] for i in box) <= room for box in boxes)
    assert len(boxes) <= 1.01 * len(best_fit(sizes, room))


def test_where_only_best_fit_finds_so_few_boxes_it_is_taken():
    """3 + 3 and 2 + 2 + 2; the emptiest first would give 3 + 2 and 3 + 2, and no room for the last."""
    assert sorted(map(len, fill([3, 3, 2, 2, 2], 6))) == [2, 3]
