"""What to lower where memory has run out: the plan's own figures, for what can be started on this machine."""

import dataclasses
import re

import pytest

from sft_recipes import RecipeError
from sft_recipes.config import resolve
from sft_recipes.engines import Engine
from sft_recipes.plan import Machine, lowered, lowering, machine, plan, planning, tables
from sft_recipes.plan.devices import Device, _memory
from sft_recipes.plan.fitting import Change
from sft_recipes.plan.memory import needed
from sft_recipes.plan.planning import numbers, setting_of
from sft_recipes.preflight import check, together


@pytest.fixture(scope="module")
def checked(small_base, tmp_path_factory):
    """A report by overrides; each once."""
    folder, found = str(tmp_path_factory.mktemp("run")), {}
    said = lambda i: {"role": "assistant", "content": f"{i} " * (5 + i % 30)}  # noqa: E731
    chats = [{"messages": [{"role": "user", "content": f"Say {i}."}, said(i)]} for i in range(64)]

    def make(**overrides):
        key = str(overrides)
        if key not in found:
            fields = dict(model=small_base, retain=None, output_dir=folder, report_to="none", **overrides)
            found[key] = check(resolve("gemma-tools", "tiny", **fields), chats, chats[:4])
            assert not found[key].faults
        return found[key]

    return make


@pytest.fixture(autouse=True)
def once(monkeypatch):
    """A model is followed once for all of these tests: it takes seconds."""
    monkeypatch.setattr(lowering, "numbers", followed)
    monkeypatch.setattr(planning, "numbers", followed)


KNOWN = {}


def followed(recipe, setting, packed):
    key = str((recipe.adapter, recipe.quantization, setting.length, packed))
    if key not in KNOWN:
        KNOWN[key] = numbers(recipe, setting, packed)
    return KNOWN[key]


def counted(report, **changed):
    """GB at the worst moment, by the plan's parts, of the run with other settings."""
    setting, row = setting_of(report, machine("cpu"), report.layout.packed is not None)
    setting = dataclasses.replace(setting, **changed)
    return needed(followed(report.resolved.recipe, setting, row.packed), setting).total / 1e9


def with_memory(monkeypatch, gb):
    """This machine has so much, and no more than the device of the plan."""
    device = Device("cpu", "a small machine", gb * 1e9, None, None, None, cuda=False)
    monkeypatch.setattr(lowering, "here", lambda cpu: device)
    return dataclasses.replace(machine("cpu"), device=device)


def test_the_figures_are_the_plans_own(checked, monkeypatch):
    report = checked(packing="none")
    before = counted(report)
    planned = plan(report, with_memory(monkeypatch, before / 2))
    assert planned["changes"] == ["--per_device_train_batch_size 2 --gradient_accumulation_steps 4"] and not planned["fits"]
    now, after = planned["memory"]["ddp"]["total"], planned["changed_gb"]
    assert lowered(report) == f"{planned['changes'][0]}: {after:.3f} GB in place of {now:.3f}, of {before / 2:.3f}"
    with_memory(monkeypatch, 0.9 * before)
    assert lowered(report).startswith(f"--gradient_checkpointing true: {counted(report, checkpointing=True):.3f} GB in place of")


@pytest.mark.parametrize("overrides", [{"packing": "none"}, {}, {"row_tokens": 1024}], ids=["separate", "packed", "row_tokens"])
@pytest.mark.parametrize("share", [0.6, 0.4])
def test_a_step_stays_as_large_and_what_is_proposed_fits(checked, monkeypatch, overrides, share):
    report = checked(gradient_checkpointing=True, **overrides)
    before = counted(report)
    with_memory(monkeypatch, share * before)
    said = lowered(report)
    name, size, accumulation, gb = re.match(r"--(\w+) (\d+) --gradient_accumulation_steps (\d+): ([\d.]+) GB in place of", said).groups()
    assert name == ("row_tokens" if "row_tokens" in overrides else "per_device_train_batch_size")
    now = report.resolved.recipe.row_tokens or report.resolved.config.per_device_train_batch_size
    assert int(size) * int(accumulation) == now * report.resolved.config.gradient_accumulation_steps and float(gb) <= share * before


def test_where_it_should_have_fitted_a_tenth_less_is_sought_and_that_is_said(checked, monkeypatch):
    """The smallest batch that leaves a tenth; a quarter of a terabyte is here."""
    report = checked(packing="none", gradient_checkpointing=True)
    with_memory(monkeypatch, 250)
    said = lowered(report)
    assert said.endswith("of 250.0 (counted, it should have fitted: something else takes memory, and 10% less was sought)")
    assert float(re.search(r": ([\d.]+) GB", said)[1]) <= 0.9 * counted(report)


def test_conversations_are_cut_where_nothing_else_leaves_what_is_learned(checked, monkeypatch):
    report = checked(packing="none", per_device_train_batch_size=1, gradient_checkpointing=True)
    before, longest = counted(report), max(len(row["input_ids"]) for row in report.prepared.rows)
    with_memory(monkeypatch, 0.8 * before)
    said = lowered(report)
    assert said.startswith(f"--max_length {-(-longest // 2)} (the longest row has {longest}): ")
    assert float(re.search(r"\): ([\d.]+) GB", said)[1]) <= 0.8 * before
    with_memory(monkeypatch, 1e-6)
    with pytest.raises(RecipeError, match=r"are counted, .* are there, and no change that is known here is enough"):
        lowered(report)


def test_processes_share_the_memory_of_a_cpu_and_more_of_them_are_no_help(checked, monkeypatch):
    report = checked(packing="none", adapter=None, quantization=None)
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    before = counted(report, devices=2)
    with_memory(monkeypatch, before)
    assert f"in place of {before:.3f}, of {before / 2:.3f}" in lowered(report)
    setting = setting_of(report, machine("cpu"), False)[0]
    refused = lowering._refused(report)
    assert [refused(Change("", dataclasses.replace(setting, engine="fsdp2", devices=n, cuda=c))) for n, c in ((4, False), (4, True))] == [
        True,
        False,
    ]


def test_engines_are_called_as_the_makefile_calls_them(checked, monkeypatch):
    """And ZeRO is not proposed where it is not installed."""
    report = checked(packing="none", per_device_train_batch_size=1, adapter=None, quantization=None, gradient_checkpointing=True)
    for name, value in {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sft_recipes.preflight.together.find_spec", lambda name: None)
    with_memory(monkeypatch, 8 * 0.95 * counted(report, devices=8))
    assert lowered(report).startswith("ENGINE=fsdp2: ")


def test_an_engine_that_cannot_be_counted_is_said(checked, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match="zero1 is none of the engines that can be counted"):
        lowered(checked(packing="none"))


@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3", "fsdp2"])
def test_a_plan_proposes_nothing_that_check_would_refuse(checked, monkeypatch, engine):
    """4 bits in integers go with neither FSDP2 nor ZeRO-3: a plan for these says so and names an engine that they go with."""
    report = checked(packing="none")
    recipe, config = report.resolved.recipe, report.resolved.config
    for share in (2, 0.9, 0.6, 0.3):
        device = Device("small", "a small device", 1e9 * share * counted(report, devices=8), 1e12, 1e12, 1.0, cuda=False)
        found = plan(report, Machine(device, 8, engine))
        assert bool(found["refused"]) == (engine in ("zero3", "fsdp2")) and found["refused"] == together.combined(
            recipe, config, Engine(engine, 8)
        )
        words = " ".join(found["changes"] or [])
        assert "--engine fsdp2" not in words and "--engine zero3" not in words
        if found["refused"] and found["changes"] is not None:
            assert "--engine zero2" in words or "--engine ddp" in words
            assert "refused: " in tables.verdict(found).plain and "lets it start and makes it fit: " in tables.verdict(found).plain
    assert words == "" or found["changed_gb"] <= device.memory / 1e9


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/job\n", {"memory.max": "max\n", "job/memory.max": "1000\n"}, 1000),
        ("0::/job/step\n", {"job/memory.max": "500\n", "job/step/memory.max": "max\n"}, 500),
        ("5:cpu:/b\n4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "700\n", "memory/b/memory.limit_in_bytes": "1"}, 700),
        ("0::/not/seen/from/here\n", {"memory.max": "900"}, 900),
        ("0::/\n", {"memory.max": "max\n"}, None),
        (None, {}, None),
    ],
)
def test_the_memory_of_a_cpu_is_what_its_container_allows(tmp_path, groups, files, limit):
    """Both versions of control groups, of the process or any above it."""
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert _memory(tmp_path) == limit if limit else _memory(tmp_path) > 1e9
