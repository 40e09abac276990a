"""Prefix trees: what is stored once, what stands again in each branch, and how a tree becomes columns."""

import random

import numpy as np
import pytest
from forests import random_rows, row

from sft_recipes.rows import IGNORED, forest, pack


@pytest.fixture
def every_token(monkeypatch):
    """A fork is worth a single token."""
    monkeypatch.setattr(forest, "MIN_SHARED", 1)


def columns(packed):
    return {name: value if name == "sources" else value.tolist() for name, value in packed.items()}


def test_two_answers_share_their_question_but_for_its_last_token_which_predicts_where_they_part(every_token):
    (packed,) = pack([row([1, 2, 3, 4, 5], 4, "a:1"), row([1, 2, 3, 6, 7], 4, "a:2")], True, count=1, seed=1).rows
    first, second = ([4, 5], [6, 7]) if packed["sources"] == ["a:1", "a:2"] else ([6, 7], [4, 5])
    assert columns(packed) == {
        "input_ids": [1, 2, 3, *first, 3, *second],
        "labels": [IGNORED] * 4 + first[1:] + [IGNORED] * 2 + second[1:],
        "position_ids": [0, 1, 2, 3, 4, 2, 3, 4],
        "subtree_end": [8, 8, 5, 5, 5, 8, 8, 8],
        "owner": [-1, -1, 0, 0, 0, 1, 1, 1],
        "sources": packed["sources"],
    }
    assert all(packed[name].dtype == np.int32 for name in columns(packed) if name != "sources")


def test_what_a_history_that_was_rewritten_leaves_alike_belongs_to_its_conversation(every_token):
    """The second row sees the first answer as context, without its thought: both rows are those of one conversation."""
    (packed,) = pack([row([1, 2, 3, 8, 4], 3, "a:1"), row([1, 2, 3, 4, 5, 6], 5, "a:1")], True, count=1).rows
    assert packed["sources"] == ["a:1"] and set(packed["owner"].tolist()) == {0}
    assert len(packed["input_ids"]) == 2 + 3 + 4


def test_nothing_is_shared_from_the_first_label_on(every_token):
    """The third row has the second's tokens, and learns them earlier; two rows are the same, and both are learned whole."""
    ids = [1, 2, 3, 4, 5, 6]
    packed = pack([row(ids, 5, "a:1"), row(ids, 5, "a:2"), row(ids, 2, "a:3")], True, count=1)
    (packed_row,) = packed.rows
    assert sorted(label for label in packed_row["labels"].tolist() if label != IGNORED) == [3, 4, 5, 6, 6, 6]
    assert packed.tokens == 1 + 5 + 3 + 2 * 2  # [1]; [2 ... 6] learned from 3 on; [2, 3, 4]; [5, 6] twice


def test_the_first_token_of_a_row_has_no_label_as_nothing_predicts_it():
    (packed,) = pack([row([1, 2], 0, "a:1", loss_weights=[1.0, 1.0]), row([3, 4], 0, "a:2", loss_weights=[0.5, 0.5])], True, count=1).rows
    assert sorted(packed["labels"].tolist()) == [IGNORED, IGNORED, 2, 4]


@pytest.mark.parametrize(("shared", "saved"), [(forest.MIN_SHARED, 0), (forest.MIN_SHARED + 1, forest.MIN_SHARED)])
def test_a_fork_is_made_where_it_saves_32_tokens(shared, saved):
    packed = pack([row([*range(shared), number, 99], shared, f"a:{number}") for number in (70, 80)], True, count=1)
    assert packed.separate_tokens - packed.tokens == saved


def test_branches_stand_in_an_order_that_only_the_seed_decides(every_token):
    rows = [row([1, 2, 3, 10 + i, 5], 4, f"a:{i}") for i in range(20)]
    orders = [[*pack(rows, True, count=1, seed=seed).rows[0]["sources"]] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2] and all(order != sorted(order) for order in orders)


def stored_naively(rows):
    """The tokens of a trie, one by one: one is stored once for all rows whose contexts agree up to the token behind it."""
    stored = set()
    for number, one in enumerate(rows):
        ids, labels = one["input_ids"], [IGNORED, *one["labels"][1:]]
        context = ids[: next((i for i, label in enumerate(labels) if label != IGNORED), len(ids))]
        stored |= {tuple(context[: depth + 2]) if depth + 2 <= len(context) else (number, depth, "own") for depth in range(len(ids))}
    return len(stored)


@pytest.mark.parametrize("seed", range(0, 400, 100))
def test_trees_hold_as_many_tokens_as_the_naive_trie(seed, every_token):
    fewer = 0
    for number in range(seed, seed + 100):
        rows = random_rows(random.Random(number))
        packed = pack(rows, True, count=1)
        assert packed.tokens == packed.least_tokens == stored_naively(rows)
        assert packed.separate_tokens == sum(len(one["input_ids"]) for one in rows)
        fewer += packed.tokens < packed.separate_tokens
    assert fewer > 70
