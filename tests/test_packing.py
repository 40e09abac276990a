"""Packing: every supervised token of every separate row once, in the same context, in rows that are full and never too large."""

import random
import time
from collections import Counter

import numpy as np
import pytest
from forests import random_rows, row

from sft_recipes import RecipeError
from sft_recipes.rows import IGNORED, boxes, dataset, forest, pack, packing


def learned(source, ids, labels, weights):
    """What a separate row teaches: each label with its context, conversation and weight; the first token has nothing before it."""
    return [(source, (*ids[:i],), labels[i], weights[i]) for i in range(1, len(ids)) if labels[i] != IGNORED]


def before(rows):
    """Everything that separate rows teach, and the rows themselves."""
    found = [(one["source"], one["input_ids"], one["labels"], one.get("loss_weights") or [1.0] * len(one["labels"])) for one in rows]
    return Counter(label for one in found for label in learned(*one)), Counter((source, (*ids,)) for source, ids, *_ in found)


def after(packed):
    """The same, of a packed row: what each of its tokens may attend to, token by token."""
    ids, labels, positions, ends, owner = (
        packed[name].tolist() for name in ("input_ids", "labels", "position_ids", "subtree_end", "owner")
    )
    weights = packed["loss_weights"].tolist() if "loss_weights" in packed else [1.0] * len(ids)
    labels_found, rows_found, owners = Counter(), Counter(), [set() for _ in ids]
    for q in range(len(ids)):
        path = [k for k in range(q + 1) if q < ends[k]]
        assert [positions[k] for k in path] == [*range(len(path))]
        context = tuple(ids[k] for k in path[:-1])
        if labels[q] != IGNORED:
            assert path[-2] == q - 1 and owner[q] >= 0
            labels_found[packed["sources"][owner[q]], context, labels[q], weights[q]] += 1
        if ends[q] == q + 1:
            rows_found[packed["sources"][owner[q]], (*context, ids[q])] += 1
            for k in path:
                owners[k].add(owner[q])
    assert owner == [-1 if len(own) > 1 else own.pop() for own in owners]
    assert sorted(set(owner) - {-1}) == [*range(len(packed["sources"]))] and len({*packed["sources"]}) == len(packed["sources"])
    return labels_found, rows_found


def same(one, other):
    return [{**row, **{name: list(row[name]) for name in row}} for row in one.rows] == [
        {**row, **{name: list(row[name]) for name in row}} for row in other.rows
    ]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("seed", range(0, 300, 100))
def test_every_label_is_learned_once_in_the_context_of_its_separate_row(seed, share, monkeypatch):
    """100 random datasets: trees split, cut and whole, rows of a given size and as many as given."""
    split = 0
    for number in range(seed, seed + 100):
        rng = random.Random(number)
        monkeypatch.setattr(forest, "MIN_SHARED", rng.randint(1, 3))
        rows = random_rows(rng)
        lengths = [len(one["input_ids"]) for one in rows]
        size, count = rng.choice([(rng.randint(max(lengths), 2 * max(lengths)), None), (None, rng.randint(1, 6))])
        packed = pack(rows, share, size, count, seed=number)
        found = [after(one) for one in packed.rows]
        assert (sum((labels for labels, _ in found), Counter()), sum((own for _, own in found), Counter())) == before(rows)
        laid_out = [len(one["input_ids"]) for one in packed.rows]
        assert max(laid_out) <= packed.row_tokens and sum(laid_out) == packed.tokens
        assert len(packed.rows) <= count if count else packed.row_tokens == size
        assert packed.least_tokens <= packed.tokens <= packed.separate_tokens == sum(lengths)
        assert packed.conversations == len({one["source"] for one in rows})
        assert share or packed.tokens == packed.separate_tokens
        assert same(packed, pack(rows, share, size, count, seed=number))
        split += packed.tokens > packed.least_tokens
    assert split > 20 if share else not split


def talks(count, generator, shared=0):
    """Conversations of log-normal length, 300 tokens in the median and at most 2,048 of their own, the second half learned."""
    prompt = generator.integers(0, 50_000, shared).tolist()
    found = []
    for number, length in enumerate(np.clip(generator.lognormal(np.log(300), 0.8, count), 20, 2048).astype(int)):
        ids = prompt + generator.integers(0, 50_000, length).tolist()
        found.append(row(ids, shared + int(length) // 2, f"a:{number}"))
    return found


@pytest.mark.parametrize("row_tokens", [2048, 4096])
def test_of_rows_of_chat_less_than_a_fiftieth_is_left_empty(row_tokens):
    packed = pack(talks(5000, np.random.default_rng(0)), True, row_tokens)
    assert packed.tokens == packed.separate_tokens and 0 <= packed.empty < 0.02


def test_on_data_that_share_nothing_trees_are_plain_packed_rows():
    rows = talks(300, np.random.default_rng(1))
    assert same(pack(rows, True, 2048), pack(rows, False, 2048))


def test_another_seed_gives_other_neighbours_and_another_order_of_rows():
    alike = [row(range(i, i + 500), 250, f"a:{i}") for i in range(40)]
    neighbours = [sorted(sorted(one["sources"]) for one in pack(alike, True, 2000, seed=seed).rows) for seed in (1, 1, 2)]
    assert neighbours[0] == neighbours[1] != neighbours[2]
    unlike = [row(range(1000 - i), 250, f"a:{i}") for i in range(9)]
    assert len({pack(unlike, False, 1000, seed=seed).rows[0]["sources"][0] for seed in range(9)}) > 3


def test_a_size_is_found_that_is_within_a_hundredth_of_the_smallest_for_as_many_rows():
    packed = pack(talks(1000, np.random.default_rng(3), shared=500), True, count=40)
    assert len(packed.rows) <= 40 and len(pack(talks(1000, np.random.default_rng(3), 500), True, packed.row_tokens * 98 // 100).rows) > 40


def test_a_row_that_does_not_fit_is_refused_with_its_place_and_the_size_it_takes():
    with pytest.raises(RecipeError, match=r"^a:2: a context of 1,500 tokens does not fit into rows of 1,000; pass --row_tokens 1500 or"):
        pack([row(range(900), 5, "a:1"), row(range(1500), 5, "a:2")], True, 1000)
    with pytest.raises(RecipeError, match=r"^a:2: a context of 1,500 tokens \(the longest of 2\) does not fit"):
        pack([row(range(1200), 5, "a:1"), row(range(1500), 5, "a:2")], True, 1000)


def test_a_tree_that_loses_a_branch_is_noticed_at_every_start(monkeypatch):
    def losing(forest, room):
        whole = split(forest, room)
        return [whole[0].over(whole[0].children[1:]), *whole[1:]]

    split = packing.split
    monkeypatch.setattr(packing, "split", losing)
    with pytest.raises(RecipeError, match="40 supervised tokens went into packed rows, 30 came out"):
        pack([row([*range(100), *[i] * 10], 100, f"a:{i}") for i in range(1, 5)], True, 2000)


def test_nothing_packs_into_nothing():
    packed = pack([], True, 1000)
    assert (packed.rows, packed.tokens, packed.empty) == ([], 0, 0.0)


def test_branches_are_cut_where_that_repeats_less_than_it_saves(monkeypatch):
    """One system prompt, many questions, eight answers to each: whole questions would leave a fifth of the rows empty."""
    generator, rows = np.random.default_rng(4), []
    system = generator.integers(0, 50_000, 1500).tolist()
    for question in range(64):
        prompt = system + generator.integers(0, 50_000, 100).tolist()
        rows += [row(prompt + generator.integers(0, 50_000, 175).tolist(), 1600, f"a:{8 * question + i}") for i in range(8)]
    cut = pack(rows, True, 4096)
    monkeypatch.setattr(boxes, "LOOKED", 0)
    whole = pack(rows, True, 4096)
    assert cut.tokens < 0.9 * whole.tokens and len(cut.rows) < 0.7 * len(whole.rows) and cut.empty < 0.05


def test_branches_are_not_cut_where_that_repeats_more_than_it_saves(monkeypatch):
    """A short system prompt above long histories: rows that are not full cost less than histories laid out again."""
    generator, rows = np.random.default_rng(7), []
    system = generator.integers(0, 50_000, 100).tolist()
    for number in range(20):
        history = system + generator.integers(0, 50_000, 200).tolist()
        for _ in range(6):
            rows.append(row(history + generator.integers(0, 50_000, 100).tolist(), len(history), f"a:{number}"))
            history = history + generator.integers(0, 50_000, 100).tolist()
    packed = pack(rows, True, 2048)
    monkeypatch.setattr(boxes, "LOOKED", 0)
    assert packed.empty > 0.2 and packed.tokens == pack(rows, True, 2048).tokens


def test_histories_nested_deeper_than_python_recurses_are_packed():
    rows, history = [], []
    for turn in range(1100):
        history = [*history, *range(turn, turn + 33)]
        rows.append(row([*history, 7, 8], len(history), "a:1"))
    packed = pack(rows, True, 40_000)
    assert packed.tokens < packed.separate_tokens / 200


def test_packed_rows_become_a_dataset_and_come_back():
    rows = [{**one, "loss_weights": [0.5] * len(one["labels"])} for one in talks(10, np.random.default_rng(5), shared=100)]
    packed = pack(rows, True, 2148).rows
    found = dataset(packed)
    assert {name: str(feature) for name, feature in found.features.items() if name != "sources"} == {
        **dict.fromkeys(("input_ids", "labels", "position_ids", "subtree_end", "owner"), "List(Value('int32'))"),
        "loss_weights": "List(Value('float32'))",
    }
    assert found[:] == {name: [list(one[name]) for one in packed] for name in packed[0]}


def test_50_000_conversations_are_packed_in_less_than_20_seconds():
    """500 tokens each on average, the first 200 shared by all: into rows of a size, and into a number of rows."""
    generator = np.random.default_rng(6)
    rows = talks(50_000, generator, shared=100)
    started = time.perf_counter()
    packed = pack(rows, True, 4096)
    between = time.perf_counter()
    pack(rows, True, count=2000)
    ended = time.perf_counter()
    print(f"\n{packed.separate_tokens:,} tokens: {between - started:.1f} s with row_tokens, {ended - between:.1f} s with count")
    assert ended - started < 20
