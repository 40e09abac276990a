"""Rows: every supervised token in, every supervised token trained or listed."""

import random
import time

import pytest

from sft_recipes import RecipeError
from sft_recipes.rows import IGNORED, Supervision, balance, build_rows, dataset, paths
from sft_recipes.turns import Turn, supervise

TALK = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2"},
]


def test_turns_that_continue_one_another_share_a_row_whose_labels_are_the_completions(tokenizer):
    turns = supervise(TALK, tokenizer)
    ((ids, labels, trained),) = paths(turns)
    assert trained == turns
    assert ids == turns[1].prompt_ids + turns[1].completion_ids
    assert [label for label in labels if label != IGNORED] == turns[0].completion_ids + turns[1].completion_ids
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
    assert tokenizer.decode([i for i, label in zip(ids, labels, strict=True) if label != IGNORED]) == "1<end_of_turn>2<end_of_turn>"


def test_rewritten_history_gives_each_turn_its_own_row():
    turns = [Turn([1, 2], [3, 9], 1), Turn([1, 2, 4, 9, 5], [6, 9], 3)]
    assert [(path.input_ids, path.labels) for path in paths(turns)] == [
        ([1, 2, 3, 9], [IGNORED, IGNORED, 3, 9]),
        ([1, 2, 4, 9, 5, 6, 9], [IGNORED] * 5 + [6, 9]),
    ]


def test_the_off_by_one(tokenizer):
    """A prompt of P tokens: after the causal shift the first supervised position is P-1."""
    (turn,) = supervise(TALK[:2], tokenizer)
    (path,) = paths([turn])
    shifted = path.labels[1:]
    assert next(i for i, label in enumerate(shifted) if label != IGNORED) == len(turn.prompt_ids) - 1


# Three turns that continue one another, of 4, 7 and 10 tokens; and three of a template that rewrites history: the second is the longest
GROWING = [Turn([1, 2], [3, 9], 1), Turn([1, 2, 3, 9, 5], [6, 9], 3), Turn([1, 2, 3, 9, 5, 6, 9, 5], [7, 9], 5)]
REWRITTEN = [Turn([1, 2], [3, 9], 1), Turn([1] * 9, [6, 9], 3), Turn([1, 4], [7, 8, 9], 5)]


def test_trimming_cuts_after_the_last_whole_turn_that_fits():
    (row,), account = build_rows([("a:1", GROWING)], max_length=9)
    assert (row["input_ids"], row["labels"]) == ([1, 2, 3, 9, 5, 6, 9], [IGNORED] * 2 + [3, 9, IGNORED, 6, 9])
    assert account.trimmed == ["a:1: 1 of 3 turns does not fit, from message 5 on: 10 tokens, max_length is 9"]
    assert (account.turns, account.rows, account.tokens, account.supervised_tokens, account.lost_tokens) == (2, 1, 7, 4, 2)
    assert not account.dropped and account.longest == 10 and account.lost_share == pytest.approx(2 / 6)


def test_a_turn_of_exactly_max_length_fits():
    rows, account = build_rows([("a:1", GROWING)], max_length=10)
    assert len(rows[0]["input_ids"]) == 10 and not account.trimmed and not account.lost_tokens


def test_where_history_is_rewritten_a_later_turn_may_fit_where_an_earlier_did_not():
    rows, account = build_rows([("a:1", REWRITTEN)], max_length=5)
    assert [row["input_ids"] for row in rows] == [[1, 2, 3, 9], [1, 4, 7, 8, 9]]
    assert account.trimmed == ["a:1: 1 of 3 turns does not fit, message 3: 11 tokens, max_length is 5"]
    assert build_rows([("a:1", REWRITTEN)], max_length=4)[1].trimmed == [
        "a:1: 2 of 3 turns do not fit, from message 3 on: 11 tokens, max_length is 4"
    ]
    _, account = build_rows([("a:1", [REWRITTEN[1], REWRITTEN[0], REWRITTEN[1]._replace(message_index=7)])], max_length=4)
    assert account.trimmed == ["a:1: 2 of 3 turns do not fit, messages 3 and 7: 11 tokens, max_length is 4"]


def test_a_conversation_of_which_no_turn_fits_is_dropped_counted_and_listed():
    rows, account = build_rows([("a:1", GROWING[:1]), ("a:2", [Turn([1] * 5_000, [9], 1)])], max_length=1_000)
    assert [row["source"] for row in rows] == ["a:1"]
    assert account.dropped == ["a:2: no turn fits, from message 1 on: 5,001 tokens, max_length is 1,000"] and not account.trimmed
    assert (account.conversations, account.turns, account.rows, account.tokens, account.supervised_tokens) == (2, 1, 1, 4, 2)
    assert account.lost_tokens == 1


@pytest.mark.parametrize("turns", [GROWING, REWRITTEN])
def test_dropping_takes_the_whole_conversation_for_one_turn_that_does_not_fit(turns):
    rows, account = build_rows([("a:1", turns), ("a:2", GROWING[:1])], max_length=9, overlong="drop")
    assert [row["source"] for row in rows] == ["a:2"] and not account.trimmed
    assert account.dropped[0].startswith("a:1: 1 of 3 turns does not fit, ")
    assert account.lost_tokens == sum(len(turn.completion_ids) for turn in turns)


def test_refusing_names_every_place_and_the_ways_out():
    with pytest.raises(RecipeError) as caught:
        build_rows([("a:1", GROWING), ("a:2", GROWING[:1]), ("a:3", REWRITTEN)], max_length=9, overlong="refuse")
    ways = "; --max_length 11 keeps all, or choose --overlong trim or --overlong drop"
    assert caught.value.faults == [
        f"a:1: 1 of 3 turns does not fit, from message 5 on: 10 tokens, max_length is 9{ways}",
        f"a:3: 1 of 3 turns does not fit, message 3: 11 tokens, max_length is 9{ways}",
    ]
    assert len(build_rows([("a:2", GROWING)], max_length=10, overlong="refuse")[0]) == 1


def test_everything_is_trimmed_by_turns_and_then_labels_the_tokens_that_are_left():
    (row,), account = build_rows([("a:1", GROWING)], max_length=9, mask="everything")
    assert row["labels"] == [IGNORED, 2, 3, 9, 5, 6, 9]
    assert (account.supervised_tokens, account.lost_tokens) == (6, 3)


def random_turns(rng):
    """Turns that continue one another, or stand alone where history is rewritten; the stop token is 9, and nothing else is."""
    turns, before = [], []
    for number in range(rng.randint(0, 5)):
        if rng.random() < 0.3:
            before = before[: rng.randint(0, len(before))]
        prompt = before + rng.choices(range(8), k=rng.randint(1, 12))
        completion = [*rng.choices(range(8), k=rng.randint(0, 8)), 9]
        turns.append(Turn(prompt, completion, 2 * number + 1, rng.choice([1.0, 1.0, 0.5])))
        before = prompt + completion
    return turns


def spans(row):
    """The row's learned spans, each with all that stands in front of it."""
    ids, labels = row["input_ids"], row["labels"]
    learned = [label != IGNORED for label in labels]
    starts = [i for i, on in enumerate(learned) if on and not (i and learned[i - 1])]
    ends = [i + 1 for i, on in enumerate(learned) if on and not (i + 1 < len(ids) and learned[i + 1])]
    return [(ids[:start], labels[start:end]) for start, end in zip(starts, ends, strict=True)]


@pytest.mark.parametrize("mask", ["completion", "everything"])
@pytest.mark.parametrize("overlong", ["trim", "drop"])
def test_rows_fit_turns_stay_whole_and_every_token_is_trained_or_lost(overlong, mask):
    """2,000 random datasets: what is kept is exactly what the policy says, down to the stop token, and the account balances."""
    trimmed = dropped = 0
    for seed in range(2_000):
        rng = random.Random(seed)
        data, limit = [(f"a:{i}", random_turns(rng)) for i in range(4)], rng.randint(3, 40)
        rows, account = build_rows(data, limit, mask, overlong=overlong)
        balance([turns for _, turns in data], rows, account, mask)
        assert all(len(row["input_ids"]) <= limit and row["input_ids"][-1] == 9 for row in rows)
        for source, turns in data:
            fit = [turn for turn in turns if len(turn.prompt_ids + turn.completion_ids) <= limit]
            expected = fit if overlong == "trim" or len(fit) == len(turns) else []
            mine = [row for row in rows if row["source"] == source]
            if mask == "completion":
                assert [span for row in mine for span in spans(row)] == [(turn.prompt_ids, turn.completion_ids) for turn in expected]
            else:
                assert [row["input_ids"] for row in mine] == [path.input_ids for path in paths(expected)]
            assert sum(line.startswith(f"{source}: ") for line in account.trimmed + account.dropped) == (len(fit) < len(turns))
        assert len(account.dropped) == len({s for s, turns in data if turns} - {row["source"] for row in rows})
        trimmed, dropped = trimmed + len(account.trimmed), dropped + len(account.dropped)
    assert dropped > 500 and (trimmed > 500) == (overlong == "trim")


@pytest.mark.parametrize("spoil", ["a row", "a label", "the account"])
def test_a_token_that_is_neither_trained_nor_listed_stops_the_run_with_all_three_numbers(spoil):
    data = [("a:1", GROWING), ("a:2", REWRITTEN)]
    rows, account = build_rows(data, 9)
    balance([turns for _, turns in data], rows, account)
    if spoil == "a row":
        del rows[0]
    elif spoil == "a label":
        rows[0]["labels"][3] = IGNORED
    else:
        account.lost_tokens -= 1
    trained = {"a row": 5, "a label": 8, "the account": 9}[spoil]
    with pytest.raises(RecipeError, match=rf"13 supervised tokens went in, {trained} are trained and {account.lost_tokens} listed as lost"):
        balance([turns for _, turns in data], rows, account)


def test_an_answer_to_an_empty_prompt_is_refused_as_nothing_predicts_its_first_token():
    turns = [Turn([], [3, 9], 1)]
    with pytest.raises(RecipeError, match="a:1: a turn's prompt has no tokens"):
        balance([turns], *build_rows([("a:1", turns)], None))


def test_the_share_that_is_lost_is_part_of_the_account():
    assert Supervision(supervised_tokens=2, lost_tokens=1).as_dict()["lost_share"] == 0.3333
    assert Supervision().as_dict()["lost_share"] == 0.0


def test_balancing_50_000_conversations_is_quick():
    """About a second; the bar leaves room for a busy machine."""
    turns, row = [Turn([1] * 400, [9] * 100, 1)], {"input_ids": [1] * 500, "labels": [IGNORED] * 400 + [9] * 100}
    account, started = Supervision(supervised_tokens=5_000_000), time.perf_counter()
    balance([turns] * 50_000, [row] * 50_000, account)
    assert time.perf_counter() - started < 5


def test_supervised_tokens_in_equal_supervised_tokens_trained(tokenizer):
    turns = supervise(TALK, tokenizer)
    rows, account = build_rows([("a:1", turns)] * 3, None)
    assert account.supervised_tokens == sum(label != IGNORED for row in rows for label in row["labels"])


def test_a_weight_of_a_message_is_the_weight_of_each_of_its_tokens():
    turns = [Turn([1, 2], [3, 9], 1), Turn([1, 2, 3, 9, 5], [6, 9], 3, 0.25)]
    rows, _ = build_rows([("a:1", turns), ("a:2", turns[:1])], None)
    assert [row["loss_weights"] for row in rows] == [[0, 0, 1, 1, 0, 0.25, 0.25], [0, 0, 1, 1]]


def test_rows_carry_no_weights_where_all_are_one():
    rows, _ = build_rows([("a:1", [Turn([1, 2], [3, 9], 1)])], None)
    assert set(rows[0]) == {"input_ids", "labels", "source"} == set(dataset(rows).column_names)


def test_conversations_with_nothing_to_learn_are_listed():
    rows, account = build_rows([("a:1", []), ("a:2", [Turn([1], [9], 1)])], None)
    assert account.unsupervised == ["a:1"] and account.conversations == 2 and len(rows) == 1


def test_everything_labels_all_tokens_that_have_a_predecessor_and_all_count_alike():
    turns = [Turn([1, 2], [3, 9], 1, 0.5), Turn([1, 2, 3, 9, 5], [6, 9], 3, 2.0)]
    (row,), account = build_rows([("a:1", turns)], None, mask="everything")
    assert row == {"input_ids": [1, 2, 3, 9, 5, 6, 9], "labels": [IGNORED, 2, 3, 9, 5, 6, 9], "source": "a:1"}
    assert account.supervised_tokens == 6


def test_per_example_each_conversation_weighs_one_over_all_of_its_rows():
    """The first has two rows, as its history was rewritten, and a turn that counts twice; the second one of a single token."""
    rewritten = [Turn([1, 2], [3, 9], 1, 2.0), Turn([1, 2, 4, 9, 5], [6, 7, 9], 3)]
    rows, _ = build_rows([("a:1", rewritten), ("a:2", [Turn([1], [9], 1)])], None, loss_per="example")
    weights = [row["loss_weights"] for row in rows]
    assert weights == [[0, 0, 2 / 7, 2 / 7], [0] * 5 + [1 / 7] * 3, [0, 1]]
    assert [sum(weights[0]) + sum(weights[1]), sum(weights[2])] == [1, 1]
    (row,), _ = build_rows([("a:1", [Turn([1, 2], [3, 9], 1)])], None, mask="everything", loss_per="example")
    assert row["loss_weights"] == [0, 1 / 3, 1 / 3, 1 / 3]
