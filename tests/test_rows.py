"""Rows: every supervised token in, every supervised token trained or listed."""

from sft_recipes.rows import IGNORED, build_rows, dataset, paths
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


def test_over_long_conversations_are_dropped_counted_and_listed():
    turns = [Turn([1, 2], [3, 9], 1)]
    rows, account = build_rows([("a:1", turns), ("a:2", [Turn([1] * 9, [9], 1)])], max_length=5)
    assert [row["source"] for row in rows] == ["a:1"]
    assert account.dropped == ["a:2: 10 tokens, max_length is 5"]
    assert (account.conversations, account.turns, account.rows, account.tokens, account.supervised_tokens) == (2, 1, 1, 4, 2)


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
