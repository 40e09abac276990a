"""Training from a stream: the same rows as of a list, window by window, and a run that was stopped goes on without reading anew."""

import json
from collections import Counter
from itertools import chain, islice, pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import several
import torch
from datasets import Dataset, IterableDataset
from test_lasting import RUN, assert_same, killed, result
from typer.testing import CliRunner

from sft_recipes import RecipeError, Source, build_trainer, load_recipe, preflight
from sft_recipes.cli import app
from sft_recipes.config import resolve
from sft_recipes.config.configuration import wanted
from sft_recipes.data import reading, streams, windows
from sft_recipes.data.windows import Windows
from sft_recipes.rows import IGNORED, Supervision
from sft_recipes.rows.grouping import LengthGrouped
from sft_recipes.rows.order import ordered
from sft_recipes.run import Run
from sft_recipes.stream import Broken, Order, RowStream
from sft_recipes.stream.later import stream_of


def plain(row):
    return row


@pytest.fixture
def small(monkeypatch):
    """Windows of seven conversations."""
    monkeypatch.setattr(windows, "WINDOW", 7)


# Sources


def shards(numbers, read=None):
    """Rows of several shards, each number in `read` when it is; as `IterableDataset.from_generator` reads them."""
    for number in chain.from_iterable(numbers):
        if read is not None:
            read.append(number)
        yield {"messages": [{"role": "user", "content": f"Say {number}."}, {"role": "assistant", "content": f"{number}"}]}


def iterable(count=24, parts=4):
    size = count // parts
    return IterableDataset.from_generator(shards, gen_kwargs={"numbers": [[*range(i * size, (i + 1) * size)] for i in range(parts)]})


@pytest.fixture
def sources(jsonl, chats, tmp_path):
    """A function for each kind of source, which gives a new stream of 24 rows."""
    rows = chats(24)
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=1))
    paths = {"jsonl": jsonl(rows), "list in a file": str(tmp_path / "list.json"), "parquet": str(tmp_path / "rows.parquet")}
    files = {name: lambda path=path, **_: streams.stream([Source(path)], []) for name, path in paths.items()}
    several = [Source(jsonl(rows[:9], "a.jsonl")), lambda: rows[9:14], Source(jsonl(rows[14:], "b.jsonl"))]
    return files | {
        "function": lambda: streams.stream([lambda: rows], []),
        "list": lambda: streams.stream_of(rows, "train_dataset", []),
        "dataset": lambda: streams.stream_of(Dataset.from_list(rows), "train_dataset", []),
        "iterable": lambda: streams.stream_of(iterable(), "train_dataset", []),
        "several": lambda: streams.stream(several, []),
    }


KINDS = ["jsonl", "list in a file", "parquet", "function", "list", "dataset", "iterable", "several"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_gives_every_row_in_order_and_goes_on_from_any_place(sources, chats, kind):
    whole = list(sources[kind]())
    assert [row for row, _ in whole] == chats(24) and len({where for _, where in whole}) == 24
    for taken in (0, 1, 6, 9, 13, 14, 23, 24):
        first = sources[kind]()
        assert list(islice(iter(first), taken)) == whole[:taken]
        second = sources[kind]()
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert list(second) == whole[taken:]
    second.load_state_dict({"epoch": 1})
    assert list(second) == whole


def test_rows_of_a_stream_stand_where_those_of_a_list_do(jsonl, chats):
    rows = ["", json.dumps(chats(1)[0]), "  ", *map(json.dumps, chats(3, 1))]
    source = Source(jsonl(rows))
    assert list(streams.stream([source], [])) == list(reading.read(source, []))


def test_lines_before_the_place_are_not_read_again(jsonl, chats):
    path = jsonl(chats(10))
    first = streams.stream([Source(path)], [])
    list(islice(iter(first), 6))
    lines = Path(path).read_bytes().splitlines(keepends=True)
    Path(path).write_bytes(b"".join([*(b"#" * (len(line) - 1) + b"\n" for line in lines[:6]), *lines[6:]]))
    second = streams.stream([Source(path)], faults := [])
    second.load_state_dict(first.state_dict())
    assert [row for row, _ in second] == chats(4, 6) and faults == []


def test_shards_before_the_place_are_not_read_again():
    def dataset(read):
        parts = [[*range(i, i + 6)] for i in range(0, 24, 6)]
        return IterableDataset.from_generator(lambda numbers: shards(numbers, read), gen_kwargs={"numbers": parts})

    first = streams.stream_of(dataset([]), "train_dataset", [])
    list(islice(iter(first), 15))
    second = streams.stream_of(dataset(read := []), "train_dataset", [])
    second.load_state_dict(first.state_dict())
    assert [where for _, where in second] == [f"train_dataset:{i}" for i in range(15, 24)]
    assert min(read) == 12


def test_what_breaks_a_source_is_a_fault_of_its_name(tmp_path):
    def broken():
        yield from shards([range(3)])
        raise ValueError("the disk is gone")

    faults = []
    for source in (Source(str(tmp_path / "no.jsonl")), Source(str(tmp_path / "no.parquet"))):
        assert list(streams.stream([source], faults)) == []
    assert len(list(streams.stream_of(IterableDataset.from_generator(broken), "train_dataset", faults))) == 3
    assert "no.jsonl: no such file" in faults[0] and "no.parquet: no such file" in faults[1]
    assert faults[2] == "train_dataset: cannot be read after row 2: ValueError: the disk is gone"


# Windows


def numbers(window):
    return [int(c["messages"][1]["content"]) for c in window.conversations]


def windowed(stream, faults=None):
    return Windows(stream, plain, [] if faults is None else faults)


def test_windows_follow_one_another_and_a_stream_that_ends_begins_again(small, sources):
    found = windowed(sources["jsonl"]())
    read = [found.read() for _ in range(9)]
    assert [numbers(w) for w in read[:4]] == [[*range(i, min(i + 7, 24))] for i in (0, 7, 14, 21)]
    assert [(w.epoch, w.number) for w in read] == [(e, n) for e in (0, 1) for n in range(4)] + [(2, 0)]
    assert [w.hash for w in read[4:8]] == [w.hash for w in read[:4]] and len({w.hash for w in read}) == 4
    assert found.head == read[0].place and not found.whole


def test_a_stream_that_ends_with_a_window_has_no_empty_one_behind_it(small, chats):
    found = windowed(streams.stream_of(chats(14), "rows", []))
    assert [(w.epoch, w.number, len(w.conversations)) for w in (found.read() for _ in range(3))] == [(0, 0, 7), (0, 1, 7), (1, 0, 7)]


def test_a_window_is_full_when_much_has_been_said(monkeypatch, chats):
    monkeypatch.setattr(windows, "WINDOW_BYTES", 200)
    found = windowed(streams.stream_of(chats(9), "rows", []))
    assert [len(found.read().conversations) for _ in range(3)] == [3, 3, 3]


def test_held_out_conversations_are_left_out_wherever_they_come_again(small, chats):
    rows = chats(7) + chats(3, 2) + chats(4, 20)
    found = windowed(streams.stream_of(rows, "rows", []))
    found.held_out = {reading.fingerprint(c) for c in found.read().conversations[2:4]}
    second, again = found.read(), found.read()
    assert (numbers(second), second.left_out) == ([4, 20, 21, 22, 23], 2)
    assert (numbers(again), again.left_out, again.epoch) == ([0, 1, 4, 5, 6], 2, 1)


def test_all_faults_of_a_window_are_told_together_and_no_others(small, jsonl, chats):
    rows = [*chats(9), "{", *chats(2, 9), {"messages": []}, *chats(3, 11), "late"]
    path = jsonl(rows)
    faults = []
    found = windowed(streams.stream([Source(path)], faults), faults)
    found.read()
    with pytest.raises(RecipeError) as error:
        found.read()
    assert [fault.partition(": ")[0].rpartition(":")[2] for fault in error.value.faults] == ["10", "13"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_is_made_again_from_its_place(small, sources, kind):
    read = windowed(sources[kind]())
    places = [read.read() for _ in range(6)]
    for window in places:
        other = windowed(sources[kind]())
        other.read()
        assert other.again(json.loads(json.dumps(window.place))) == window
        assert numbers(other.read()) == numbers(places[(places.index(window) + 1) % 4])


def test_a_shuffled_stream_which_cannot_go_on_in_the_middle_is_read_from_its_beginning(small):
    def shuffled():
        return windowed(streams.stream_of(iterable().shuffle(seed=3, buffer_size=10), "rows", []))

    read = shuffled()
    seen = [read.read() for _ in range(7)]
    first = [number for window in seen[:4] for number in numbers(window)]
    assert sorted(first) == [*range(24)] != first
    assert numbers(seen[4]) != numbers(seen[0])  # upstream's other order of the next epoch
    for at in (1, 2, 5):
        other = shuffled()
        window = other.again(json.loads(json.dumps(seen[at].place)))
        assert (numbers(window), window.hash) == (numbers(seen[at]), seen[at].hash)
        assert at == 5 or numbers(other.read()) == numbers(seen[at + 1])


def test_a_stream_that_says_something_else_now_is_refused(small, jsonl, chats):
    rows = chats(21)
    place = [w for _ in range(1) for w in [windowed(streams.stream([Source(jsonl(rows))], []))] for w in (w.read(), w.read())][1].place
    rows[9] = chats(1, 99)[0]
    with pytest.raises(RecipeError, match=r"^epoch 0, window 1: the stream gives other conversations than it did"):
        windowed(streams.stream([Source(jsonl(rows))], [])).again(place)


# The order


def test_the_order_of_the_first_window_is_that_of_a_dataset():
    lengths = torch.randint(5, 60, (47,)).tolist()
    for epoch in (0, 1):
        dataset = LengthGrouped(lengths, 4, 42)
        dataset.set_epoch(epoch)
        assert ordered(lengths, epoch, 0, 0, 4, 42, "group_by_length", False) == list(dataset)


def test_orders_differ_and_steps_keep_together_what_is_alike():
    lengths = torch.randint(5, 60, (406,), generator=torch.Generator().manual_seed(0)).tolist()
    found = [ordered(lengths, e, w, 3, 8, 42, "group_by_length", False) for e in (0, 1) for w in (0, 1)]
    assert all(sorted(order) == [*range(406)] for order in found) and len({tuple(order) for order in found}) == 4
    steps = [[lengths[row] for row in order[i : i + 8]] for order in found for i in range(5, 405, 8)]
    assert sum(max(step) - min(step) for step in steps) / len(steps) < 8  # 43 at random
    begun = [[lengths[row] for row in order[:5]] for order in found]  # any lengths, as what the step has already
    assert sum(max(rows) - min(rows) for rows in begun) / len(begun) > 20
    assert ordered(lengths, 0, 1, 3, 8, 42, "sequential", False) == [*range(406)]
    assert ordered(lengths, 0, 1, 3, 8, 42, "group_by_length", True) == ordered(lengths, 0, 1, 0, 8, 42, "random", False)


# Rows


def checked(base, rows, folder="unused", **fields):
    given = {**RUN, "model": base, "output_dir": folder, "held_out": 2, "max_length": 64, **fields}
    given.pop("scale")
    report = preflight.check(resolve("gemma-tools", "tiny", **given), rows)
    assert not report.faults, report.faults
    return report


def streamed(base, rows, step=4, **fields):
    report = checked(base, rows, streaming=True, **fields)
    found = stream_of(report.prepared, report.layout, report.resolved.config)
    found.begin(10_000, Order(step, 42, "group_by_length", report.layout.packed is not None))
    return report, found


def learned(rows):
    """Of each conversation the ids that are learned, with their weights."""
    found = Counter()
    for row in rows:
        sources, owners = row.get("sources", [row.get("source")]), row.get("owner", [0] * len(row["labels"]))
        weights = row.get("loss_weights") or [float(label != IGNORED) for label in row["labels"]]
        for label, owner, weight in zip(row["labels"], owners, weights, strict=True):
            if label != IGNORED:
                found[sources[owner], label, round(float(weight), 5)] += 1
    return found


def an_epoch(stream):
    """The rows of the first epoch, and how many there are."""
    rows = []
    while stream._served[-1].place["epoch"] == 0:
        rows.append(stream[len(rows)])
        stream.reach(len(rows))
    return rows[: stream._served[-1].start]


@pytest.mark.parametrize(
    "fields", [{"packing": "none"}, {"packing": "bfd"}, {"packing": "tree"}, {"packing": "tree", "loss_per": "example"}]
)
def test_a_stream_gives_the_rows_of_a_list(small, small_base, chats, fields):
    rows = chats(24) + [{"messages": [*c["messages"], *d["messages"]]} for c, d in pairwise(chats(11))]
    held = chats(3, 50)
    fields = {**fields, "row_tokens": 90}
    whole = checked(small_base, rows, **fields)
    of_list = learned(whole.prepared.rows)
    report, stream = streamed(small_base, rows + held, **fields)
    left = {q.source for q in report.prepared.questions}
    found = learned(an_epoch(stream))
    sources = {source for source, *_ in found}
    assert sources == {f"train_dataset:{i}" for i in range(37)} - left and len(left) == 1
    both = sources & {source for source, *_ in of_list}
    assert len(both) > 30
    assert {k: v for k, v in found.items() if k[0] in both} == {k: v for k, v in of_list.items() if k[0] in both}


def test_separate_rows_are_those_of_the_list_one_by_one(small, small_base, chats):
    def told(rows):
        return {row["source"]: (list(row["input_ids"]), list(row["labels"])) for row in rows}

    of_list = told(checked(small_base, chats(24), packing="none").prepared.rows)
    of_stream = told(an_epoch(streamed(small_base, chats(24), packing="none")[1]))
    assert len(of_stream) == 23 and all(of_stream[source] == of_list[source] for source in of_list.keys() & of_stream.keys())


def test_rows_by_number_are_the_same_however_they_are_asked_for(small, small_base, chats):
    _, stream = streamed(small_base, chats(24), packing="none")
    rows = [stream[i] for i in range(60)]
    assert [stream[i] for i in (3, 4, 59)] == [rows[i] for i in (3, 4, 59)]
    stream.reach(40)
    assert [stream[i] for i in (2, 41)] == [rows[i] for i in (2, 41)]
    assert len({row["source"] for row in rows[:23]}) == 23  # one epoch
    assert [row["source"] for row in rows[:23]] != [row["source"] for row in rows[23:46]]


@pytest.mark.parametrize("at", [3, 20, 31, 52])
def test_rows_go_on_from_a_place_in_another_process(small, small_base, jsonl, chats, at, monkeypatch):
    path = jsonl(chats(24))
    _, first = streamed(small_base, None, data=path, packing="none")
    rows = [first[i] for i in range(70)]
    first = streamed(small_base, None, data=path, packing="none")[1]
    [first[i] for i in range(at + 6)]  # a loader reads ahead
    first.reach(at)
    state, account = json.loads(json.dumps(first.state_dict())), first.account(at)
    _, second = streamed(small_base, None, data=path, packing="none")
    read = told_of(monkeypatch)
    second.load_state_dict(state)
    assert second.account(at) == account
    assert len(read) == (7 if state["start"] else 0)  # of one window, whichever it is
    assert [second[i] for i in range(at, 70)] == rows[at:]


def told_of(monkeypatch):
    """The lines of each row that a window takes from now on."""
    converted, read = windows.converted, []
    monkeypatch.setattr(windows, "converted", lambda row, at, *args: read.append(at.rpartition(":")[2]) or converted(row, at, *args))
    return read


# The account, faults, stop tokens


def made_of(*windows_of_lengths, max_lost=1.0):
    """A stream of windows whose rows have these lengths, the first the head; a negative length is a lost turn, a text a fault."""

    def part(lengths):
        if isinstance(lengths, str):
            raise RecipeError(lengths)
        kept = [n for n in lengths if n > 0]
        account = Supervision(len(lengths), len(kept), len(kept), sum(kept), sum(kept), -sum(n for n in lengths if n < 0))
        account.dropped = [f"rows:{n}" for n in lengths if n < 0]
        rows = [{"input_ids": [1] * n, "labels": [1] * n, "source": f"{n}"} for n in kept]
        return SimpleNamespace(supervision=account, turns=[[SimpleNamespace(completion_ids=[n])] for n in kept], rows=rows), rows

    class Listed:
        head, read_on = {"epoch": 0, "window": 0}, 0

        def read(self):
            self.read_on += 1
            place = {"epoch": 0, "window": self.read_on}
            return SimpleNamespace(conversations=windows_of_lengths[self.read_on], place=place, left_out=1)

        def again(self, place):
            self.read_on = place["window"]
            return SimpleNamespace(conversations=windows_of_lengths[self.read_on], place=place, left_out=1)

    head, rows = part(windows_of_lengths[0])
    stream = RowStream(Listed(), head, rows, part, max_lost)
    stream.begin(1000, Order(2, 42, "sequential", False))
    return stream


def test_the_account_grows_when_rows_are_reached_not_when_they_are_read():
    stream = made_of([3, 4], [5, -6], [7, 8, 9])
    [stream[i] for i in range(5)]
    assert stream.account(0)["conversations"] == 2 and stream.stops == {3, 4}
    stream.reach(3)
    found = stream.account(3)
    assert (found["conversations"], found["supervised_tokens"], found["lost_tokens"], found["dropped"]) == (4, 12, 6, ["rows:-6"])
    assert found["stream"]["trained"] == {"rows": 3, "conversations": 3, "supervised_tokens": 12}
    assert (found["stream"]["left_out"], found["stream"]["windows"], stream.stops) == (1, 2, {3, 4, 5})
    stream.reach(5)
    assert stream.account(5)["stream"]["trained"] == {"rows": 5, "conversations": 5, "supervised_tokens": 12 + 7 + 8}


def test_a_fault_is_told_when_its_rows_are_to_be_trained_and_the_place_stays():
    stream = made_of([3, 4, 5], [6], "data.jsonl:9: not JSON")
    [stream[i] for i in range(9)]
    stream.reach(4)
    state = stream.state_dict()
    for _ in range(2):
        with pytest.raises(Broken, match=r"^data.jsonl:9: not JSON$"):
            stream.reach(6)
    assert stream.state_dict() == state and state["place"] == {"epoch": 0, "window": 1}


def test_what_may_be_lost_is_held_over_all_windows():
    stream = made_of([90], [-5, 5], [-20, 1], max_lost=0.1)
    stream.reach(2)
    with pytest.raises(Broken, match=r"^2 of 5 conversations read of the stream are too long, 20\.66% of .* --max_lost 0\.21 .*: rows:-5$"):
        stream.reach(3)


def test_a_window_of_which_nothing_is_trained_is_passed_over():
    stream = made_of([3], [-4], [5])
    assert [stream[i]["source"] for i in (0, 1)] == ["3", "5"]
    stream.reach(2)
    assert stream.account(2)["dropped"] == ["rows:-4"]


# Check


def test_what_does_not_go_with_a_stream_is_refused(small_base, chats):
    wrong = dict(max_steps=-1, mix=0.1, dataloader_num_workers=2, train_sampling_strategy="batch_rebalance", retain=[])
    resolved = resolve("gemma-tools", "tiny", model=small_base, streaming="true", report_to="none", **{**wrong, "retain": lambda: chats(9)})
    faults = [fault for fault in preflight.check(resolved, chats(9)).faults if fault.startswith("streaming")]
    for fault, word in zip(faults, ("--max_steps 1000", "mix is 0.1", "each of 2 data workers", "'batch_rebalance'"), strict=True):
        assert word in fault


def test_a_stream_is_judged_within_its_one_epoch_of_transformers():
    recipe = load_recipe("gemma-tools").recipe.with_fields({"config": {}})
    found = [wanted("x", recipe.with_fields({"streaming": streaming}), {}, "").get("eval_strategy") for streaming in (True, False)]
    assert found == ["steps", None]


# Runs


@pytest.fixture(scope="module")
def make(small_base, tmp_path_factory):
    """Trainers of a streamed run with dropout and noise, each in the folder it is given; none is deployed."""
    from peft import LoraConfig

    adapter = LoraConfig(r=4, lora_dropout=0.1, target_modules=r".*language_model.*q_proj", task_type="CAUSAL_LM")
    folder = tmp_path_factory.mktemp("streamed")

    def build(name, rows, **overrides):
        data = {"data": rows} if isinstance(rows, str) else {"train_dataset": rows}
        given = {**RUN, "model": small_base, "adapter": adapter, "streaming": True, "output_dir": folder / name, "held_out": 2}
        trainer = build_trainer("gemma-tools", **{**given, **data, **overrides})
        trainer._deploy = lambda learned, lines: {}
        trainer._report = lambda: None
        return trainer

    return build


def losses(trainer):
    names = ("loss", "grad_norm", "loss_all", "eval_loss", "supervised_tokens_per_step")
    return [{n: entry[n] for n in names if n in entry} for entry in trainer.state.log_history]


@pytest.mark.parametrize("packing", ["none", "tree"])
def test_a_stream_in_one_window_trains_as_its_list_does(make, chats, packing):
    fields = dict(max_steps=5, packing=packing, eval_steps=5, logging_steps=1)  # within the first epoch
    found = [make(f"{packing}-{streaming}", chats(24), streaming=streaming, **fields) for streaming in (True, False)]
    for trainer in found:
        trainer.train()
    assert losses(found[0]) == losses(found[1]) and len(losses(found[0])) >= 6
    weights = [result(trainer)[0] for trainer in found]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


@pytest.fixture(scope="module")
def whole(make, chats, tmp_path_factory):
    """A run of 36 rows, over windows of seven of 24 conversations: through an epoch and half of the next."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in chats(24)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "WINDOW", 7)
        trainer = make("whole", str(path))
        trainer.train()
    return str(path), result(trainer)


@pytest.mark.parametrize("moment", [("training_step", 5), ("training_step", 9), ("_generated", 4)])
def test_a_killed_run_goes_on_in_its_stream_without_reading_it_again(small, make, whole, monkeypatch, moment):
    path, expected = whole
    name = f"killed-{moment[0]}-{moment[1]}"
    killed(make(name, path), *moment)
    trainer = make(name, path)
    converted, read = windows.converted, []
    monkeypatch.setattr(
        windows, "converted", lambda row, where, *args: read.append(where.rpartition(":")[2]) or converted(row, where, *args)
    )
    trainer.train()
    assert_same(result(trainer), expected)
    if moment == ("training_step", 9):  # after step 6, row 24, the second of the second epoch
        assert read[:7] == [str(i) for i in range(1, 8)] and not set(read) & {"22", "23", "24"}
    assert len(read) <= 36


@pytest.mark.parametrize(("line", "step"), [(9, 1), (16, 3)])  # in the second window, and in the third; a checkpoint is due at step 3
def test_a_bad_row_late_in_the_stream_stops_the_run_which_goes_on_once_it_is_mended(small, make, whole, jsonl, line, step):
    path, expected = whole
    lines = Path(path).read_text().splitlines()
    other = jsonl([*lines[:line], "{" + lines[line], lines[line + 1].replace("assistant", "asistant"), *lines[line + 2 :]])
    trainer = make(f"bad-{line}", other)
    with pytest.raises(RecipeError) as error:
        trainer.train()
    faults = error.value.faults
    assert f"data.jsonl:{line + 1}: not JSON" in faults[0] and f"data.jsonl:{line + 2}, message 1: role is 'asistant'" in faults[1]
    assert f"step {step} is saved in" in faults[2] and len(faults) == 3
    assert (trainer.checkpoints / f"checkpoint-{step}").is_dir()
    Path(other).write_text(Path(path).read_text())
    trainer = make(f"bad-{line}", other)
    trainer.train()
    found = result(trainer)
    assert all(torch.equal(found[0][name], expected[0][name]) for name in expected[0])
    assert found[2] == expected[2]


def test_metrics_tell_what_was_trained_of_the_stream(whole):
    supervision = whole[1][1]["supervision"]
    assert supervision["train"]["stream"]["trained"]["rows"] == 36 == 9 * 4
    assert supervision["train"]["stream"]["epoch"] == 1 and supervision["train"]["stream"]["left_out"] == 1
    assert supervision["train"]["conversations"] == 23 + 7 - 1 + 7 == supervision["train"]["rows"]


def test_stop_tokens_of_later_windows_are_known_to_the_run_and_to_one_that_goes_on(small, make, whole, monkeypatch):
    def first_tokens(turns):
        return {turn.completion_ids[0] for turn in turns}

    def run(name):
        trainer = make(name, whole[0], max_steps=6, eval_strategy="no", save_steps=2, save_strategy="steps", load_best_model_at_end=False)
        return trainer, set(trainer.prepared.stop_ids)

    monkeypatch.setattr("sft_recipes.stream.rows.stop_ids", first_tokens)
    trainer, known = run("stops")
    killed(trainer, "training_step", 4)
    again, _ = run("stops")
    assert known.isdisjoint(expected := first_tokens(again.prepared.train.turns[0]))
    again.train()
    assert expected <= again.prepared.stop_ids
    for text in ("8", "13", "20"):  # of the second window, which was trained before the kill, and of the third
        (token,) = again.processing_class(text, add_special_tokens=False)["input_ids"][:1]
        assert token in again.prepared.stop_ids - known


def test_the_command_line_streams_a_file_through_to_the_proof(small, small_base, jsonl, chats, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sft_recipes.export.deployment.prove", several.prove_here)
    fields = dict(model=small_base, data=jsonl(chats(24)), max_steps=5, held_out=2, max_new_tokens=4, report_to="none", logging_steps=1)
    words = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    done = CliRunner().invoke(app, ["train", "gemma-tools", "--scale", "tiny", "--streaming", *words])
    assert done.exit_code == 0, done.output
    assert "a stream: its first 6 conversations were read; the others are checked when they come" in done.stdout
    metrics = Run(tmp_path / "runs" / "gemma-tools").read("metrics.json")
    assert metrics["merge"]["faults"] == [] and metrics["merge"]["generations_equal"]
    assert metrics["supervision"]["train"]["stream"]["windows"] > 1
    assert Run(tmp_path / "runs" / "gemma-tools").read("recipe.json")["resolved"]["streaming"] is True
