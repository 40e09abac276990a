"""The rows benchmark: the data are what their names say, and both sides train the same."""

import json
from statistics import median

import pytest

from benchmarks import picture, sides
from benchmarks import rows as benchmark
from benchmarks.__main__ import keep
from benchmarks.rows import CLOSE, Result, compare
from benchmarks.workloads import WORKLOADS, rows_of
from sft_recipes.rows import IGNORED, pack


def contexts(rows):
    """Tokens in front of the first label of each row."""
    return [next(i for i, label in enumerate(row["labels"]) if label != IGNORED) for row in rows]


def common(one, other):
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def spans(row):
    """How many turns a row trains."""
    learned = [label != IGNORED for label in row["labels"]]
    return sum(now and not before for before, now in zip([False, *learned], learned, strict=False))


def test_agents_share_1500_tokens_and_have_two_to_six_turns():
    rows, tokenizer = rows_of("agent", 40)
    shared = min(common(rows[0]["input_ids"], row["input_ids"]) for row in rows[1:])
    assert 1400 < shared < 1600 and min(contexts(rows)) >= shared
    assert {spans(row) for row in rows} == {2, 3, 4, 5, 6} and len(rows) == 40
    assert tokenizer.decode(rows[0]["input_ids"][:shared]).count('"type": "function"') == 12


def test_reasoning_gives_one_row_a_turn_in_which_earlier_thoughts_are_left_out():
    rows, tokenizer = rows_of("reasoning", 20)
    turns = [sum(row["source"] == f"reasoning:{i}" for row in rows) for i in range(1, 21)]
    assert {4, 8} <= set(turns) <= {4, 5, 6, 7, 8} and {spans(row) for row in rows} == {1}
    for row in rows:
        context = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == IGNORED]
        assert "<think>" not in tokenizer.decode(context)
        assert "<think>" in tokenizer.decode([label for label in row["labels"] if label != IGNORED])


def test_eight_answers_share_a_question_of_600_tokens():
    rows, _ = rows_of("answers", 12)
    assert len(rows) == 96 and 500 < median(contexts(rows)) < 700
    for first in range(0, 96, 8):
        assert len({tuple(row["input_ids"][: contexts([row])[0]]) for row in rows[first : first + 8]}) == 1
    assert not common(rows[0]["input_ids"], rows[8]["input_ids"]) > 10


def test_chats_share_nothing_and_spread_in_length():
    rows, _ = rows_of("chat", 200)
    lengths = sorted(len(row["input_ids"]) for row in rows)
    assert 200 < lengths[100] < 450 and lengths[180] > 2 * lengths[100] > 4 * lengths[20] and lengths[-1] < 2300
    packed = pack(rows, share=True, count=10)
    assert packed.tokens == packed.separate_tokens == sum(lengths)


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_data_are_the_same_at_every_call(name):
    assert rows_of(name, 2)[0] == rows_of(name, 3)[0][: len(rows_of(name, 2)[0])]


def test_both_sides_train_the_same_tokens_with_the_same_loss(monkeypatch):
    monkeypatch.setattr(benchmark, "THREADS", 1)
    monkeypatch.setattr(sides, "SIZE", sides.SIZE | dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2))
    found = compare("reasoning", scale=0.1, rounds=1)
    ours, trl = found.loss
    assert ours == pytest.approx(trl, rel=CLOSE) and found.ours > 0 and found.trl > 0
    assert found.limit > 1.5 and found.line().split()[0] == "reasoning" and found.line().endswith(f"{found.ratio:.2f}x")


RESULT = Result("agent", "packed", 900.0, 300.0, (2**20, None), 4.0, (7.6, 7.6), 3.0)


def test_the_figures_are_kept_with_what_they_were_measured_on(tmp_path):
    keep([RESULT], tmp_path / "results" / "rows.json")
    kept = json.loads((tmp_path / "results" / "rows.json").read_text())
    assert kept["workloads"][0]["ratio"] == 3.0 and kept["workloads"][0]["memory"] == [2**20, None]
    assert kept["versions"].keys() == {"torch", "transformers", "trl"} and kept["threads"] == 2
    assert "1 / ? MiB" in RESULT.line() and RESULT.line().endswith("  3.00x") and "75% of it" in RESULT.line()


def test_the_picture_names_each_workload_and_is_the_same_for_the_same_numbers(tmp_path):
    for name in ("one.svg", "other.svg"):
        picture.draw([RESULT, RESULT._replace(name="chat", layout="padded")], tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "other.svg").read_text()
    assert all(word in text for word in ("agent", "chat", "3.0 times", "TRL padded"))


def test_the_bars_are_those_that_were_set():
    assert {name: workload.bar for name, workload in WORKLOADS.items()} == {"agent": 3.0, "reasoning": 2.0, "answers": 3.0, "chat": 1.0}
    assert WORKLOADS["agent"].groups == 512 and WORKLOADS["answers"].groups == 64
