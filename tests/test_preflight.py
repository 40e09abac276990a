"""`check`: counts against the slow obvious way, padding against the real batches, every piece of advice, all faults together."""

import json
import random
import re
from itertools import groupby
from types import SimpleNamespace

import pytest
from peft import LoraConfig, PromptTuningConfig
from test_cli import run

from sft_recipes import Recipe, preflight
from sft_recipes.config import resolve
from sft_recipes.preflight import advice
from sft_recipes.preflight.lengths import Batching, padding_warnings, percentiles
from sft_recipes.preflight.omitted import lost
from sft_recipes.rows import Supervision, build_rows

WORDS = [f"{a}{b}" for a in ("north", "south", "over", "under", "some") for b in ("ward", "side", "land", "where", "hill", "port", "way")]


def long_chats(count, seed=0):
    """Conversations of 10 to 300 random words, in the OpenAI form; every third has two turns."""
    rng = random.Random(seed)

    def said(role):
        return {"role": role, "content": " ".join(rng.choices(WORDS, k=rng.randint(5, 75)))}

    return [{"messages": [said(role) for role in ("user", "assistant") * (1 + (i % 3 == 0))]} for i in range(count)]


def middle(values, share):
    """A percentile by the book: linear between the two nearest of the sorted values."""
    values, place = sorted(values), share * (len(values) - 1)
    low = values[int(place)]
    return round(low + (place % 1) * (values[min(int(place) + 1, len(values) - 1)] - low))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """A real trainer on 77 conversations, 12 of them held out; one a row, batches of 4, two to a step."""
    from sft_recipes import build_trainer

    batches = dict(per_device_train_batch_size=4, per_device_eval_batch_size=3, gradient_accumulation_steps=2)
    where = dict(output_dir=str(tmp_path_factory.mktemp("run")), report_to="none", max_length=450, max_lost=1.0, packing="none")
    return build_trainer("gemma-tools", scale="tiny", train_dataset=long_chats(77), held_out=12, **batches, **where)


@pytest.fixture(scope="module")
def report(trainer):
    return preflight.check(trainer.resolved, long_chats(77))


def test_counts_are_those_of_the_trainers_own_rows(report, trainer):
    for name, rows in (("train", trainer.train_dataset), ("held_out", trainer.eval_dataset)):
        found, lengths = report.counts[name], [len(ids) for ids in rows["input_ids"]]
        turns = [len(list(run)) for labels in rows["labels"] for learned, run in groupby(labels, lambda label: label != -100) if learned]
        assert (found["rows"], found["turns"], found["conversations"]) == (len(rows), len(turns), len(rows) + len(found["dropped"]))
        assert found["lost_share"] == round(found["lost_tokens"] / (found["lost_tokens"] + sum(turns)), 4)
        assert (found["tokens"], found["supervised_tokens"]) == (sum(lengths), sum(turns))
        assert found["supervised_share"] == round(sum(turns) / sum(lengths), 4)
        for key, values in (("length", lengths), ("completion_length", turns)):
            shares = {f"p{percent}": middle(values, percent / 100) for percent in (5, 50, 95, 99)}
            assert found[key] == {**shares, "max": max(values)}
        assert found["in_source"] == found["conversations"] == report.counts["diversity"][name]["compared"]
    assert report.counts["train"]["dropped"] and report.counts["train"]["trimmed"] and not report.sampled


def test_percentiles_are_those_of_a_known_ramp():
    assert percentiles(list(range(101))) == {"p5": 5, "p50": 50, "p95": 95, "p99": 99, "max": 100}
    assert percentiles([7]) == {"p5": 7, "p50": 7, "p95": 7, "p99": 7, "max": 7} and percentiles([]) == {}


def padding_of(loader):
    masks = [batch["attention_mask"] for batch in loader]
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def test_padding_is_that_of_the_trainers_own_batches(report, trainer):
    found = report.counts["train"]["padding"]
    assert 0 < found == pytest.approx(padding_of(trainer.get_train_dataloader()), abs=1e-4)
    assert report.counts["held_out"]["padding"] == pytest.approx(padding_of(trainer.get_eval_dataloader()), abs=1e-4)


def test_rows_at_random_are_padded_as_much_as_in_the_trainers_own_order(trainer, monkeypatch):
    monkeypatch.setattr(trainer.args, "train_sampling_strategy", "random")
    found = Batching.training(trainer.args).padding([len(ids) for ids in trainer.train_dataset["input_ids"]])
    assert found > 0.2 and found == pytest.approx(padding_of(trainer.get_train_dataloader()), abs=0.1)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("strategy", ["random", "sequential", "batch_rebalance", "group_by_length", "upstream"])
def test_every_strategy_takes_every_row_once(strategy, processes):
    batching, lengths = Batching(strategy, 4, 2, 0, 1, processes), random.Random(1).choices(range(1, 200), k=53)
    assert sorted(i for rows in batching.batches(lengths) for i in rows) == list(range(53))
    assert 0 < batching.padding(lengths) < 0.8


def test_rows_are_padded_to_the_declared_multiple():
    batching = Batching("sequential", 2, 1, 0, 8)
    assert batching.padding([3, 5, 9]) == 1 - 17 / (2 * 8 + 16)


def test_batches_laid_in_one_row_have_no_padding(trainer, monkeypatch):
    monkeypatch.setattr(trainer.args, "padding_free", True)
    assert Batching.training(trainer.args).padding([3, 5, 9]) == 0


def test_much_padding_is_said_with_what_would_help():
    config = resolve("gemma-tools", scale="tiny", train_sampling_strategy="random", packing="none").config
    lengths = random.Random(3).choices(range(1, 500), k=1000)
    (warning,) = padding_warnings(lengths, config, "")
    share = Batching.training(config).padding(lengths)
    assert warning.startswith(
        f"{share:.0%} of the positions in training batches are padding; --packing auto leaves none; --train_sampling_s"
    )
    (warning,) = padding_warnings(lengths, config, "Mamba has recurrent layers")
    assert "are padding; packed rows would leave none, but Mamba has recurrent layers; --train_sampling_strategy group_by_length" in warning
    config.train_sampling_strategy = "group_by_length"
    assert padding_warnings(lengths, config, "") == []
    (warning,) = padding_warnings(lengths[:16], config, "")
    assert "--per_device_train_batch_size 4 --gradient_accumulation_steps 2 would leave" in warning


@pytest.mark.parametrize(
    ("parameters", "adapter", "rate"),
    [
        (7e9, LoraConfig(), 2e-4),
        (400e9, LoraConfig(), 2e-4),
        (1e9, None, 2e-5),
        (7e9, None, 2e-5),
        (70e9, None, 1e-5),
        (400e9, None, 5e-6),
        (2e12, None, 5e-6),
        (22.136e9, None, 1.4142e-5),  # halfway in logarithms
    ],
)
def test_usual_rates(parameters, adapter, rate):
    low, typical, high = advice.usual_rates(adapter, parameters)
    assert typical == pytest.approx(rate, rel=1e-3) and low == pytest.approx(rate / 5, rel=1e-3)
    assert high == pytest.approx(rate * (10 if parameters < 7e9 and adapter is None else 5), rel=1e-3)


def settings(**changes):
    usual = dict(learning_rate=2e-4, optim="adamw_torch", num_train_epochs=3, max_steps=-1, max_grad_norm=1.0)
    usual |= dict(lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs=None, get_warmup_steps=lambda steps: 30)
    return SimpleNamespace(**{**usual, **changes})


@pytest.mark.parametrize(
    ("changes", "parameters", "adapter", "line"),
    [
        (
            dict(learning_rate=2e-5),
            7e9,
            LoraConfig(),
            "learning_rate is 2e-05; usual for LoRA is about 0.0002 (4e-05 to 0.001): --learning_rate 0.0002",
        ),
        (dict(learning_rate=2e-3), 7e9, LoraConfig(), "learning_rate is 0.002; usual for LoRA"),
        (
            dict(learning_rate=2e-4),
            8e9,
            None,
            "learning_rate is 0.0002; usual for full fine-tuning of 8 billion parameters is about 1.9e-05",
        ),
        (
            dict(learning_rate=1e-6),
            70e9,
            None,
            "learning_rate is 1e-06; usual for full fine-tuning of 70 billion parameters is about 1e-05",
        ),
        (dict(learning_rate=3e-4), 0.5e9, None, "learning_rate is 0.0003; usual for full fine-tuning of 0.5 billion parameters"),
        (dict(num_train_epochs=5.0), 7e9, LoraConfig(), "num_train_epochs is 5; usual is 1 to 3"),
        (dict(max_grad_norm=5.0), 7e9, LoraConfig(), "max_grad_norm is 5; usual is 1.0"),
        (dict(max_grad_norm=0.0), 7e9, LoraConfig(), "max_grad_norm is off; usual is 1.0"),
        (dict(max_grad_norm=None), 7e9, LoraConfig(), "max_grad_norm is off; usual is 1.0"),
    ],
)
def test_unusual_settings_are_named_with_what_is_usual(changes, parameters, adapter, line):
    (warning,) = advice.warnings(Recipe(model="m", data="d", adapter=adapter), settings(**changes), int(parameters))
    assert warning.startswith(line) and f": --{line.split()[0]} " in warning


@pytest.mark.parametrize(
    ("changes", "parameters", "adapter"),
    [
        ({}, 7e9, LoraConfig()),
        (dict(learning_rate=2e-5, max_grad_norm=0.3), 7e9, None),
        (dict(learning_rate=2e-4), 3e9, None),  # small models bear ten times the rate
        (dict(learning_rate=1.0), 2e6, LoraConfig()),  # tiny: no rule holds
        (dict(learning_rate=0.3), 7e9, PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")),
        (dict(learning_rate=1.0, optim="adafactor"), 7e9, None),
        (dict(num_train_epochs=50, max_steps=10), 7e9, LoraConfig()),  # the steps decide
    ],
)
def test_usual_settings_are_passed_over(changes, parameters, adapter):
    assert advice.warnings(Recipe(model="m", data="d", adapter=adapter), settings(**changes), int(parameters)) == []


def test_advice_duplicates_and_faults_come_in_one_report(jsonl, tmp_path):
    path = jsonl([{"messages": []}, "{", {"messages": [{"role": "usr", "content": "x"}, {"role": "assistant"}]}])
    words = ["--data", path, "--model", str(tmp_path / "absent"), "--num_train_epochs", "9", "--max_grad_norm", "0"]
    result = run("check", "gemma-tools", *words, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 1 and len(result.stdout.strip().splitlines()) == 1
    assert [fault.split(": ")[0] for fault in found["faults"][1:]] == [
        "data.jsonl:1",
        "data.jsonl:2",
        *(f"data.jsonl:3, message {i}" for i in (0, 1)),
    ]
    assert [warning.split()[0] for warning in found["warnings"]] == ["num_train_epochs", "max_grad_norm"]
    assert run("check", "gemma-tools", *words).stdout.count("fault: ") == len(found["faults"])


def test_a_sample_says_so_and_all_does_not(monkeypatch, jsonl, chats):
    monkeypatch.setattr(preflight, "SAMPLE", 10)
    words = ["check", "gemma-tools", "--scale", "tiny", "--data", jsonl(chats(30)), "--held_out", jsonl(chats(5, 100), "held.jsonl")]
    assert "sampled 10 of 30 conversations; --all reads everything" in run(*words).stdout
    assert "sampled" not in run(*words, "--all").stdout
    found = [json.loads(run(*words, *more, "--json").stdout) for more in ([], ["--all"])]
    assert [f["sampled"] for f in found] == [True, False]
    assert [f["counts"]["train"]["conversations"] for f in found] == [10, 30]
    assert [f["counts"]["train"]["in_source"] for f in found] == [30, 30]


def test_the_account_is_short_and_a_leak_is_named(jsonl, chats):
    rows = chats(30)
    words = ["--data", jsonl(rows), "--held_out", jsonl([*chats(5, 100), rows[3]], "held.jsonl")]
    lines = run("check", "gemma-tools", "--scale", "tiny", *words).stdout.splitlines()
    assert len([line for line in lines if not line.startswith("warning: ")]) <= 25
    assert any(line.startswith("warning: 1 of 6 held-out") and line.endswith("held.jsonl:6 = data.jsonl:4") for line in lines)
    assert any(re.fullmatch(r"diversity \(Vendi\) +\d+ prompts, 30 replies +\d prompts, 6 replies", line) for line in lines)
    assert lines[-1] == "check passed; turns end in <end_of_turn>"


def part_of(count, **account):
    return SimpleNamespace(supervision=Supervision(**account), conversations=[{}] * count)


def test_lost_conversations_are_counted_with_what_they_cost_and_the_first_named(report):
    part = report.prepared.train
    found = part.supervision
    faults, (line,) = lost("train", part, 1.0)
    count, share = len(found.trimmed) + len(found.dropped), f"{found.lost_tokens / (found.lost_tokens + found.supervised_tokens):.2%}"
    how = f"{len(found.trimmed)} trimmed, {len(found.dropped)} dropped whole"
    start = f"{count} of {len(part.conversations)} train conversations are too long ({how}), {share} of the supervised tokens are lost; "
    longest = max(len(turn.prompt_ids + turn.completion_ids) for turns in part.turns for turn in turns)
    assert not faults and line.startswith(f"{start}--max_length {longest} keeps all: {found.trimmed[0]}")
    faults, (line,) = lost("train", part_of(9, unsupervised=[f"a:{i}" for i in range(5)]), 0.0)
    assert not faults and line.startswith("5 of 9 train conversations teach nothing")
    assert line.endswith("a:0; a:1; a:2; and 2 more, listed by check --json")


def test_losing_more_than_allowed_is_a_fault_and_exactly_as_much_is_not():
    part = part_of(2_000, supervised_tokens=980, lost_tokens=20, longest=5210, dropped=["a:7: no turn fits"])
    assert lost("train", part, 0.02)[0] == [] and len(lost("train", part, 0.02)[1]) == 1
    assert lost("train", part, 0.019) == (
        [
            "1 of 2,000 train conversations are too long (1 dropped whole), 2.00% of the supervised tokens are lost, max_lost is 1.90%; "
            "--max_length 5210 keeps all, --max_lost 0.02 allows it: a:7: no turn fits"
        ],
        [],
    )


def test_what_is_lost_stops_training_and_is_a_warning_where_allowed_or_held_out(jsonl, chats):
    """One long answer of eleven; in the held-out part, one of six."""
    talk = [{"role": role, "content": "word " * 300} for role in ("user", "assistant")]
    long = {"messages": [*chats(1, 400)[0]["messages"], *talk]}
    words = ["--data", jsonl([*chats(10), long]), "--held_out", jsonl([*chats(5, 100), long], "held.jsonl"), "--max_length", "300"]
    words = ["check", "gemma-tools", "--scale", "tiny", *words]
    found = json.loads(run(*words, "--json").stdout)
    place = r"data\.jsonl:11: 1 of 2 turns does not fit, from message 3 on: \d\d\d tokens, max_length is 300"
    (fault,) = found["faults"]
    assert fault.startswith("1 of 11 train conversations are too long (1 trimmed)") and re.search(place, fault)
    assert any(line.startswith("1 of 6 held-out conversations are too long (1 trimmed)") for line in found["warnings"])
    longest, share = re.search(r"--max_length (\d+) keeps all, --max_lost ([\d.]+) allows it", fault).groups()
    for more in (["--max_length", longest], ["--max_lost", share]):
        assert json.loads(run(*words, *more, "--json").stdout)["faults"] == []
    allowed = run(*words, "--max_lost", share).stdout
    assert "warning: 1 of 11 train conversations are too long" in allowed
    assert re.search(r"^too long, trimmed +1 +1$", allowed, re.MULTILINE) and "too long, dropped" not in allowed
    dropped = run(*words, "--max_lost", "1", "--overlong", "drop").stdout
    assert re.search(r"^too long, dropped +1 +1$", dropped, re.MULTILINE) and "too long, trimmed" not in dropped
    refused = json.loads(run(*words, "--overlong", "refuse", "--json").stdout)["faults"]
    assert [fault.split(": ")[0] for fault in refused] == ["data.jsonl:11", "held.jsonl:6"]
    assert all(fault.endswith(f"; --max_length {longest} keeps all, or choose --overlong trim or --overlong drop") for fault in refused)


def test_refusing_names_the_right_lines_where_others_have_faults_of_their_own(jsonl, chats):
    wrong = {"messages": [{"role": "user", "content": "x <end_of_turn>"}, {"role": "assistant", "content": "y"}]}
    long = {"messages": [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "y"}]}
    words = ["--data", jsonl([wrong, *chats(10), long]), "--held_out", jsonl(chats(5, 100), "held.jsonl"), "--max_length", "300"]
    found = json.loads(run("check", "gemma-tools", "--scale", "tiny", *words, "--overlong", "refuse", "--json").stdout)
    assert [fault.split(": ")[0] for fault in found["faults"]] == ["data.jsonl:1, message 0", "data.jsonl:12"]


def test_rows_that_get_lost_on_their_way_stop_every_start(monkeypatch, jsonl, chats):
    def careless(*args):
        rows, account = build_rows(*args)
        return rows[1:], account

    monkeypatch.setattr("sft_recipes.parts.build_rows", careless)
    words = ["--data", jsonl(chats(10)), "--held_out", jsonl(chats(5, 100), "held.jsonl")]
    found = json.loads(run("check", "gemma-tools", "--scale", "tiny", *words, "--json").stdout)["faults"]
    assert len(found) == 2 and all("supervised tokens went in" in fault for fault in found)


def test_where_all_are_too_long_the_length_that_keeps_them_is_named(jsonl, chats):
    words = ["--data", jsonl(chats(10)), "--held_out", jsonl(chats(5, 100), "held.jsonl"), "--max_length", "3"]
    found = json.loads(run("check", "gemma-tools", "--scale", "tiny", *words, "--json").stdout)["faults"]
    assert [fault.partition(": ")[0] for fault in found] == ["no training conversation is left", "no held-out conversation is left"]
    assert all(re.search(r"max_length is 3; --max_length \d+ keeps all$", fault) for fault in found)


def test_a_conversation_without_anything_to_learn_is_named(jsonl, chats):
    idle = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "train": False}]}
    words = ["--data", jsonl([*chats(10), idle]), "--held_out", jsonl(chats(5, 100), "held.jsonl")]
    found = json.loads(run("check", "gemma-tools", "--scale", "tiny", *words, "--json").stdout)
    assert found["counts"]["train"]["unsupervised"] == ["data.jsonl:11"] and found["faults"] == []
    assert found["warnings"][0].startswith("1 of 11 train conversations teach nothing") and found["warnings"][0].endswith("data.jsonl:11")
    assert "nothing to learn" in run("check", "gemma-tools", "--scale", "tiny", *words).stdout


@pytest.mark.parametrize(("kind", "told"), [("linear", True), ("cosine", True), ("constant", False), ("cosine_with_min_lr", False)])
def test_a_warm_up_that_begins_at_zero_is_named(kind, told):
    """The border: which of upstream's schedules do so is asked of them."""
    config = resolve("gemma-tools", scale="tiny", lr_scheduler_type=kind).config
    line = f"the first step changes nothing: the warm-up of lr_scheduler_type {kind} begins at 0"
    assert any(found.startswith(line) for found in advice.warnings(resolve("gemma-tools").recipe, config, 1000)) is told


def test_resolved_tiny_recipe_gets_no_advice():
    resolved = resolve("gemma-tools", scale="tiny")
    assert advice.warnings(resolved.recipe, resolved.config, 2_000_000) == []
