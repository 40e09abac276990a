"""Many conversations: on disk, block by block, in processes and windows, they are what few are in memory."""

import json
import os
import pickle
import random
from itertools import pairwise
from multiprocessing import spawn

import numpy as np
import pyarrow as pa
import pytest
from test_supervising import outcome, someones

from sft_recipes import RecipeError, SupervisionError, preflight, shelf, watch
from sft_recipes.config import resolve
from sft_recipes.rows import IGNORED, dataset, pack, packing
from sft_recipes.shelf import Shelf, View, collected, picked
from sft_recipes.tiny.talks import talks
from sft_recipes.turns import Supervisor, parallel
from sft_recipes.turns.dataset import supervise_all
from sft_recipes.turns.parallel import supervise_many


@pytest.fixture
def small(monkeypatch):
    """Everything is many."""

    def shrink(**others):
        for module, name, value in ((shelf, "MANY", 7), (shelf, "CHUNK", 4), (parallel, "BLOCK", 11), (parallel, "PROCESSES", 1)):
            monkeypatch.setattr(module, name, others.get(name, value))

    return shrink


# Sequences on disk


def test_a_shelf_is_read_like_the_list_it_came_from(small):
    small()
    entries = [{"n": i, "s": "é🙂" * i, "t": (i, None)} for i in range(30)]
    found = collected(iter(entries))
    assert isinstance(found, Shelf) and len(found) == 30 and list(found) == entries and list(found) == entries
    assert [found[i] for i in (0, 3, 4, 29, -1, -30)] == [entries[i] for i in (0, 3, 4, 29, -1, -30)]
    for cut in (slice(2, 5), slice(None, None, 7), slice(20, 3, -4), slice(0, 0)):
        assert found[cut] == entries[cut]
    long = found[5:29]
    assert isinstance(long, View) and len(long) == 24 and list(long) == entries[5:29] and long[-1] == entries[28]
    assert list(long[3:20]) == entries[8:25] and list(long[::2]) == entries[5:29:2]
    for wrong in (30, -31):
        with pytest.raises(IndexError):
            found[wrong]
    with pytest.raises(IndexError):
        long[24]


def test_few_stay_in_memory_and_few_large_ones_do_not(small, monkeypatch):
    small()
    assert collected(range(7)) == [0, 1, 2, 3, 4, 5, 6] and isinstance(collected(range(8)), Shelf) and collected([]) == []
    assert isinstance(picked([*range(99)], range(50)), list)
    monkeypatch.setattr(shelf, "LARGE", 1000)
    large = collected("x" * 600 for _ in range(6))
    assert isinstance(large, Shelf) and list(large) == ["x" * 600] * 6


def test_a_shelf_leaves_no_name_behind_and_a_full_disk_is_one_line(small, monkeypatch, tmp_path):
    small()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    found = collected(range(50))
    assert list((tmp_path / "cache").iterdir()) == [] and list(found) == [*range(50)]

    class Full:
        def write(self, data):
            raise OSError(28, "No space left on device")

    found._file = Full()
    with pytest.raises(RecipeError, match=rf"^{tmp_path}/cache: no room for the prepared data .*: No space left .* HF_DATASETS_CACHE$"):
        found.put(b"", 1)


# Conversations to rows


def rows_of_all_kinds():
    """Talks, some with weights, some too long, some that teach nothing, some twice."""
    rng, found = random.Random(1), []
    for i, row in zip(range(70), talks(held_out=False), strict=False):
        messages = [dict(message) for message in row["messages"]]
        if i % 9 == 0:
            messages[1]["weight"] = 0.5
        if i % 13 == 0:
            messages[-1]["train"] = False
        if i % 11 == 0:
            messages += [{"role": "user", "content": "More."}, {"role": "assistant", "content": "word " * rng.randint(80, 200)}]
        found.append({"messages": messages})
    return [*found, *found[:6]]


def looked_at(rows, **fields):
    report = preflight.check(resolve("lima", "tiny", data=rows, held_out=12, max_length=120, max_lost=1.0, report_to="none", **fields))
    return report, report.as_dict()


@pytest.mark.parametrize("fields", [{}, {"packing": "none", "loss_per": "example"}, {"overlong": "drop", "packing": "bfd"}])
def test_many_are_prepared_exactly_as_few(small, jsonl, fields):
    file = jsonl(rows_of_all_kinds())
    few, told = looked_at(file, **fields)
    small()
    many, told_of_many = looked_at(file, **fields)
    assert told == told_of_many and not told["faults"] and told["counts"]["train"]["trimmed" if "overlong" not in fields else "dropped"]
    for name in ("train", "held_out"):
        one, other = getattr(few.prepared, name), getattr(many.prepared, name)
        assert isinstance(one.rows, list) and isinstance(other.rows, Shelf) and not isinstance(other.conversations, list)
        assert (list(other.conversations), list(other.turns)) == (one.conversations, one.turns)
        assert list(other.rows) == one.rows and other.supervision == one.supervision and other.hash == one.hash
    assert many.prepared.questions == few.prepared.questions and many.prepared.stop_ids == few.prepared.stop_ids
    if few.layout.packed:
        for one, other in zip(few.layout.packed.rows, many.layout.packed.rows, strict=True):
            assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_weights_that_few_rows_have_are_given_to_all_where_rows_are_on_disk(small, jsonl):
    small()
    rows = looked_at(jsonl(rows_of_all_kinds()))[0].prepared.train.rows
    assert all(set(row["loss_weights"]) <= {0.0, 0.5, 1.0} for row in rows) and any(0.5 in row["loss_weights"] for row in rows)
    assert all((weight > 0) == (label != IGNORED) for row in rows for weight, label in zip(row["loss_weights"], row["labels"], strict=True))


def test_faults_of_many_are_those_of_few(small, jsonl):
    rows = [json.dumps(row) for row in rows_of_all_kinds()]
    for i in (3, 20, 21, 50):
        rows[i] = json.dumps({"messages": [{"role": "user", "content": "x <end_of_turn>"}, {"role": "assistant", "content": f"{i}"}]})
    control = looked_at(jsonl(rows, "control.jsonl"))[1]["faults"]
    rows[30], rows[31] = "{", json.dumps({"messages": []})
    shape = looked_at(jsonl(rows, "shape.jsonl"))[1]["faults"]
    small()
    assert looked_at(jsonl(rows, "shape.jsonl"))[1]["faults"] == shape and len(shape) == 2
    rows[30], rows[31] = json.dumps(rows_of_all_kinds()[30]), json.dumps(rows_of_all_kinds()[31])
    assert looked_at(jsonl(rows, "control.jsonl"))[1]["faults"] == control and len(control) == 4


# In processes


def test_processes_supervise_as_one_does_and_the_second_time_read_each_block(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "BLOCK", 16)
    rng = random.Random(5)
    spoken = [someones(rng, i) for i in range(70)]
    expected = [outcome(turns) for turns in supervise_all(Supervisor(tokenizer), spoken)]
    assert any(isinstance(turns[0], str) for turns in expected if turns)
    found = supervise_many(Supervisor(tokenizer), iter(spoken), len(spoken), tmp_path, processes=2)
    assert [outcome(turns) for turns in found] == expected
    blocks = [supervise_all(Supervisor(tokenizer), spoken[i : i + 16]) for i in range(0, 70, 16)]
    whole = sum(not any(isinstance(turns, SupervisionError) for turns in block) for block in blocks)
    assert len(list(tmp_path.iterdir())) == whole
    good = [pair for pair, turns in zip(spoken, expected, strict=True) if not turns or not isinstance(turns[0], str)]
    for _ in range(2):
        again = supervise_many(Supervisor(tokenizer), iter(good), len(good), tmp_path / "good", processes=0)
        monkeypatch.setattr(Supervisor, "rendered", lambda self, conversations: 1 / 0)
    assert len(list((tmp_path / "good").iterdir())) == -(-len(good) // 16) and len(again) == len(good)


class Deadly:
    """Kills the process that reads it."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_process_that_is_killed_is_one_line(tokenizer, monkeypatch):
    monkeypatch.setattr(parallel, "_recipe_of", lambda supervisor: {"tokenizer": Deadly()})
    with pytest.raises(RecipeError, match=r"^a process that supervised conversations was killed, .* what was done is kept"):
        supervise_many(Supervisor(tokenizer), iter([([], None)]), 1, None, processes=1)


def test_a_process_does_not_run_the_persons_script_again(monkeypatch):
    import sys

    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "/some/script.py", raising=False)
    assert "init_main_from_path" in spawn.get_preparation_data("one")
    with parallel._nameless_main():
        assert not {"init_main_from_path", "init_main_from_name"} & spawn.get_preparation_data("one").keys()
    assert sys.modules["__main__"].__file__ == "/some/script.py"


def test_a_tokenizer_that_cannot_be_sent_is_used_here(tokenizer, monkeypatch):
    monkeypatch.setattr(parallel, "_recipe_of", lambda supervisor: {"tokenizer": lambda: None})
    spoken = [someones(random.Random(0), 0)]
    found = supervise_many(Supervisor(tokenizer), iter(spoken), 1, None, processes=2)
    assert [outcome(turns) for turns in found] == [outcome(turns) for turns in supervise_all(Supervisor(tokenizer), spoken)]


def test_processes_are_the_cores_that_are_this_ones(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert parallel.processes_here() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert parallel.processes_here() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert parallel.processes_here() == 0


# Packed in windows


def made(count, seed=0, several=False):
    """Separate rows of 5 to 60 tokens, of which the first 40 are one of three beginnings; conversations have one row or up to three."""
    rng, rows = random.Random(seed), []
    for number in range(count):
        for _ in range(rng.randint(1, 3) if several else 1):
            begin = [[7] * 40, [8] * 40, [9] * 2][rng.randrange(3)]
            ids = [*begin, *(rng.randint(10, 99) for _ in range(rng.randint(3, 20)))]
            rows.append({"input_ids": ids, "labels": [IGNORED] * (len(ids) - 2) + ids[-2:], "source": f"x:{number}"})
    return rows


@pytest.mark.parametrize("sizes", [{"count": 20}, {"row_tokens": 150}])
def test_each_window_is_packed_as_it_is_by_itself(monkeypatch, sizes):
    rows = made(100)
    monkeypatch.setattr(packing, "WINDOW", 25)
    found = pack(rows, share=True, **sizes)
    share = {"count": 5} if "count" in sizes else sizes
    alone = [pack(rows[i : i + 25], share=True, **share) for i in range(0, 100, 25)]
    assert isinstance(found.rows, Shelf) and found.row_tokens == max(window.row_tokens for window in alone)
    assert found.conversations == 100 and found.tokens == sum(window.tokens for window in alone)
    assert found.separate_tokens == sum(len(row["input_ids"]) for row in rows) and 0 <= found.empty < 1
    for one, other in zip([row for window in alone for row in window.rows], found.rows, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_windows_are_bounded_in_rows_and_tokens_and_cut_no_conversation(monkeypatch):
    monkeypatch.setattr(packing, "WINDOW", 30)
    monkeypatch.setattr(packing, "WINDOW_TOKENS", 1000)
    assert packing.windows([10] * 90) == [0, 30, 60, 90] and packing.windows([10] * 30) == [0, 30] and packing.windows([]) == [0, 0]
    cuts = packing.windows([500] * 10)
    assert len(cuts) == 6 and max(b - a for a, b in pairwise(cuts)) <= 3
    rows = made(80, several=True)
    found = pack(rows, share=False, count=30)
    assert found.conversations == 80
    monkeypatch.setattr(packing, "WINDOW", 10**6)
    monkeypatch.setattr(packing, "WINDOW_TOKENS", 10**9)
    whole = pack(rows, share=False, count=30)
    assert sum(len(row["labels"][row["labels"] != IGNORED]) for row in found.rows) == 2 * len(rows)
    assert sorted(s for row in found.rows for s in row["sources"] if s) and found.tokens == whole.tokens


def test_a_row_too_long_for_any_window_is_named_with_the_longest_of_all(monkeypatch):
    monkeypatch.setattr(packing, "WINDOW", 10)
    rows = [{"input_ids": [1] * n, "labels": [IGNORED] + [1] * (n - 1), "source": f"x:{n}"} for n in [*range(10, 50), 90]]
    with pytest.raises(RecipeError, match=r"x:90: a context of 90 tokens \(the longest of 10\)"):
        pack(rows, share=False, row_tokens=40)


# What the trainer gets


def test_a_dataset_of_rows_on_disk_is_mapped_and_equals_the_one_in_memory(small):
    small()
    rows = made(60)
    for one in (rows, pack(rows, share=True, count=20).rows):
        before = pa.total_allocated_bytes()
        mapped = dataset(collected(one))
        assert pa.total_allocated_bytes() == before and isinstance(one, list)
        there = dataset(one)
        assert mapped.features == there.features and mapped.to_dict() == there.to_dict()
        assert pickle.loads(pickle.dumps(mapped)).to_dict() == there.to_dict()


def test_progress_is_plain_lines_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(watch, "PAUSE", 0.0)
    assert list(watch.watched("abc", "supervising", 25, 10)) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == [f"supervising: {n} of 25 conversations" for n in (10, 20, 25)]
    monkeypatch.setenv("RANK", "1")
    assert list(watch.watched("abc", "reading")) == ["a", "b", "c"] and capsys.readouterr().err == ""
