"""`make gpu` as far as a CPU goes: every section runs, every figure has a line, and none is made up."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as benchmark
from benchmarks.gpu import exact
from benchmarks.gpu.baton import alternate
from benchmarks.gpu.device import Budget
from benchmarks.gpu.picture import draw
from benchmarks.gpu.table import Figure, Table

ROOT = Path(__file__).parent.parent
ONLY_THERE = ("peak memory", "share of the measured peak", "predicted to measured", "matrix product")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The table and the results file of the tiny scale, and what lay in the repository's results before and after."""
    out, results = tmp_path_factory.mktemp("gpu"), ROOT / "benchmarks" / "results"
    before = sorted(results.iterdir())
    table = benchmark.main(["--scale", "tiny", "--out", str(out)])
    assert sorted(results.iterdir()) == before
    (file,) = out.glob("*.json")
    return table, json.loads(file.read_text()), file.with_suffix(".md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="on CUDA every figure is measured")
def test_every_section_ran_and_a_figure_that_needs_a_gpu_says_so(found):
    table, kept, _ = found
    assert {figure["section"] for figure in kept["figures"]} == {"device", "exact", "fast", "right", "journey"}
    for figure in table.figures.values():
        if any(words in figure.name or words in figure.section for words in ONLY_THERE):
            assert figure.missed == "no CUDA device" and not figure.values
        else:
            assert figure.values and not figure.missed, (figure.name, figure.missed)


def test_the_results_file_and_the_table_have_every_figure_of_the_scale(found):
    table, kept, page = found
    declared = benchmark.declared("tiny").figures
    assert list(table.figures) == list(declared) == [(figure["section"], figure["name"]) for figure in kept["figures"]]
    assert all(name in page for _, name in declared)
    assert kept["torch"] == torch.__version__ and kept["scale"] == "tiny"


def test_what_is_exact_is_exact_there_too(found):
    for figure in found[0].figures.values():
        if figure.section in ("exact", "journey") and not any(words in figure.name for words in ("bf16", "generations", "in all")):
            assert figure.holds, figure.cells()


def test_both_sides_learned_the_same_tokens_with_the_same_loss(found):
    losses = [figure for figure in found[0].figures.values() if "first loss" in figure.name]
    assert len(losses) == 2 and all(figure.median < 2e-3 for figure in losses)


def test_the_full_scale_has_every_figure_that_was_asked_for():
    names = [name for _, name in benchmark.declared("full").figures]
    for workload in ("agent", "chat", "reasoning"):
        for precision in ("LoRA bf16", "QLoRA NF4"):
            for size in ("4,096", "8,192"):
                of = f"{workload}, Gemma 3 4B, {precision}, {size} a row"
                assert len([name for name in names if name.startswith(of)]) == 10
    bars = {
        figure.name: figure.least for figure in benchmark.declared("full").figures.values() if figure.least and figure.section == "fast"
    }
    of = "Gemma 3 4B, LoRA bf16, 8,192 a row"
    assert [bars[f"{workload}, {of}: ours to TRL"] for workload in ("agent", "reasoning", "chat")] == [3.0, 2.0, 1.0]
    assert bars[f"chat, {of}: share of the measured peak, ours"] == 0.45


def test_a_figure_is_held_to_its_bar_by_its_median_and_an_empty_one_to_none():
    assert Figure("a", "b", values=[1.0, 5.0, 2.0], least=2.0).holds and not Figure("a", "b", values=[1.0, 5.0, 2.0], least=2.1).holds
    assert not Figure("a", "b", values=[3.0], most=2.0).holds and not Figure("a", "b", values=[float("nan")], most=2.0).holds
    assert Figure("a", "b", least=2.0).holds is None
    table = Table([Figure("a", "b", "s"), Figure("a", "c")])
    table.give("a", "b", [2.0, 1.0, 4.0])
    table.miss("no time left", "a")
    assert table.lines()[0].split("  ")[1].strip() == "2 (1 to 4, 3 runs) s" and "not run: no time left" in table.lines()[1]
    with pytest.raises(KeyError):
        table.give("a", "nobody declared it", 1.0)


def test_without_time_nothing_is_measured_and_everything_says_so(tmp_path):
    run = benchmark.Run("tiny", tmp_path, Budget(-1.0))
    run.all()
    assert all(figure.missed == "no time left" and not figure.values for figure in run.table.figures.values())


def test_a_part_that_fails_says_why_and_the_next_one_runs(tmp_path):
    run = benchmark.Run("tiny", tmp_path, Budget(60.0))
    run.guarded("journey", "", lambda: 1 / 0)
    assert all(f.missed == "ZeroDivisionError: division by zero" for f in run.table.figures.values() if f.section == "journey")


def test_a_training_that_fails_in_its_turn_ends_both():
    class Failing:
        model = torch.nn.Linear(1, 1)

        def __init__(self):
            self.callbacks = []

        def add_callback(self, callback):
            self.callbacks.append(callback)

        def remove_callback(self, callback):
            self.callbacks.remove(callback)

        def train(self):
            for callback in self.callbacks:
                callback.on_train_begin()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(RuntimeError, match="out of memory"):
        alternate({"one": Failing(), "other": Failing()}, 3)


def test_two_readings_that_are_apart_are_told_so():
    one = {"hidden": torch.tensor([3.0, 4.0]), "weight": torch.tensor([1.0])}
    assert exact.apart(one, {"hidden": torch.tensor([3.0, 4.0]), "weight": torch.tensor([2.0])}) == (0.0, 0.5)
    with pytest.raises(ArithmeticError):
        exact.apart({**one, "weight": torch.tensor([float("nan")])}, one)


def test_the_picture_has_a_bar_for_each_case_and_is_not_drawn_of_nothing(tmp_path):
    table = benchmark.declared("full")
    assert not draw(table, {"device": "NVIDIA X"}, tmp_path / "x.svg") and not (tmp_path / "x.svg").exists()
    table.give("fast", "chat, Gemma 3 4B, LoRA bf16, 8,192 a row: ours to TRL", [1.1, 1.2, 1.3])
    assert draw(table, {"device": "NVIDIA X"}, tmp_path / "x.svg")
    assert "chat, Gemma 3 4B, LoRA bf16, 8,192 a row" in (tmp_path / "x.svg").read_text()
