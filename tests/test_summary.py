"""The end of a run: twenty lines of eighty columns that say what matters, whatever the run folder has or lacks."""

import json

import pytest
from rich.cells import cell_len
from rich.console import Console

from sft_recipes import screen
from sft_recipes.public import public
from sft_recipes.run import Run, summary

BEFORE = {"exact": 0.015, "exact_3_terms": 0.0, "valid": 0.045, "stops": 0.78, "eval_loss": 2.188}
AFTER = {"exact": 0.955, "exact_3_terms": 0.9, "valid": 0.98, "stops": 1.0, "eval_loss": 0.02}
MANNER = {"length": 38.8, "repeats": 0.061, "echoes_prompt": 0.16, "distinct": 0.976}
PROOF = {"kl": 7.8e-14, "max_kl": 3.9e-11, "generations": 64, "generations_equal": True, "stops": 1.0}
BEST = "kept: step 300, the best exact of 11 evaluations (0.955); the lowest held-out loss, 0.019, was at step 450, where exact is 0.940"
CURVES = (
    "training loss 2.006 to 0.011; held-out loss 2.188 to 0.035; held-out loss turned at step 120 (0.020) and was 0.035 at step 500, "
    "while the training loss fell on from 0.020 to 0.011: it overfits from there"
)
RETAIN = "on the data to be kept, loss 2.10 to 2.13, accuracy 53.1% to 52.0%"


def line_of(asked, reply, exact, stage="after"):
    expected = {"role": "assistant", "content": "the reference"}
    said = {"asked": asked, "expected": expected, "reply": reply, "scores": {"exact": exact, "stops": 1.0}}
    return {"stage": stage, "source": "data/a.jsonl:3", "message_index": 1, **said}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Makes a run folder, `runs/a`, and gives its summary."""
    monkeypatch.chdir(tmp_path)
    samples = [line_of(f"Question {i}?", f"reply {i}", float(i % 4 != 3)) for i in range(12)]

    def make(lines=samples, **metrics):
        made = Run(tmp_path.__class__("runs/a"))
        made.write("metrics.json", {"primary": "exact", "before": BEFORE, "after": AFTER, "merge": PROOF, **metrics})
        made.write_lines("samples.jsonl", [line_of("?", "before training", 0.0, "before"), *lines])
        return made

    return make


@pytest.fixture
def printed(monkeypatch):
    def show(told):
        monkeypatch.setattr(screen, "out", Console(highlight=False, record=True, width=80, quiet=False))
        screen.print_summary(told)
        return screen.out.export_text().splitlines()

    return show


def everything(run):
    judged = {"best": {"said": BEST, "agree": False}, "curves": {"said": CURVES, "overfitting": {"step": 120}}}
    retain = {
        "before": {"loss": 2.1, "accuracy": 0.531},
        "after": {"loss": 2.13, "accuracy": 0.52},
        "said": RETAIN,
        "rise": 0.03,
        "max_rise": 0.1,
    }
    proof = {**PROOF, "loss": 0.02, "trained_loss": 0.02, "faults": [], "bases": {}, "base": "trained"}
    made = run(**judged, retain=retain, merge=proof, before=BEFORE | MANNER, after=AFTER | MANNER)
    (made.folder / "report.html").write_text("<html></html>")
    return summary(made)


def test_everything_in_twenty_lines(run, printed):
    lines = printed(everything(run))
    text = " ".join(" ".join(lines).split())
    assert len(lines) <= 20 and max(map(len, map(str.rstrip, lines))) <= 80
    for said in (BEST, CURVES, RETAIN, "exact 0.015 0.955", "retain loss 2.100 2.130", "length 38.8 38.8", "KL 7.8e-14"):
        assert said in text
    assert "Deployable folder: runs/a/merged Next: make chat RUN=runs/a, and open runs/a/report.html" in text
    assert "exact_3_terms" not in text and "before training" not in text
    assert sum(line.startswith("asked  ") for line in lines) >= 1


def test_an_old_run_has_three_generations_one_of_them_wrong(run, printed):
    lines = printed(summary(run()))
    assert len(lines) <= 20 and [line[:5] for line in lines if line.startswith(("asked", "right", "wrong"))] == [
        *("asked", "right", "asked", "wrong", "asked", "right")
    ]
    assert [line.split() for line in lines[:5]] == [
        ["held-out", "before", "after"],
        ["exact", "0.015", "0.955"],
        ["valid", "0.045", "0.980"],
        ["stops", "0.780", "1.000"],
        ["eval_loss", "2.188", "0.020"],
    ]


def test_many_scores_and_long_sentences_stay_in_bounds(run, printed):
    many = {f"a_score_with_a_very_long_name_of_its_own_{i}": 0.5 for i in range(30)} | AFTER | MANNER
    long = "word " * 300
    lines = printed(summary(run(before={}, after=many, best={"said": long}, curves={"said": long}, retain={"said": long})))
    assert len(lines) <= 21 and any(line.startswith("exact ") for line in lines) and any(line.startswith("eval_loss") for line in lines)


def test_what_was_not_deployed_says_why_and_what_to_type(run, printed):
    lines = printed(summary(run(merge={**PROOF, "faults": ["mean KL 0.3, the bound is 0.001"]})))
    assert lines[-2:] == ["mean KL 0.3, the bound is 0.001", "Not deployed. Next: make merge RUN=runs/a"]
    assert printed(summary(run(merge={})))[-1] == "Not deployed. Next: make merge RUN=runs/a"


def test_replies_are_text_and_nothing_else(run, printed):
    evil = "[bold]x[/] \x1b[2J\x07\r\n\n" + "中" * 100
    lines = printed(summary(run([line_of("[red]?[/red]\x1b[0m", evil, 0.0)])))
    shown = [line for line in lines if line.startswith(("asked", "wrong"))]
    assert shown[0] == r"asked  [red]?[/red]\x1b[0m" and shown[1].startswith(r"wrong  [bold]x[/] \x1b[2J\x07\r↵ ↵ 中")
    assert cell_len(shown[1].rstrip()) <= 80


def test_a_primary_that_judges_no_reply_calls_none_right_or_wrong(run, printed):
    told = summary(run(primary="eval_loss"))
    assert {sample["right"] for sample in told["samples"]} == {None} and told["samples"][0]["reference"] == "the reference"
    assert any(line.startswith("reply  ") for line in printed(told))


def test_a_run_without_samples_and_a_primary_that_is_gone(run, printed):
    made = run(primary="length", after=AFTER | MANNER, before=BEFORE)
    (made.folder / "samples.jsonl").unlink()
    told = summary(made)
    assert told["samples"] == [] and json.dumps(told)
    assert next(line for line in printed(told) if line.startswith("length")).split()[:3] == ["length", "-", "38.8"]


def test_what_is_public_holds_no_secret():
    hidden = {"hub_token": "hf_x", "token": "x", "api_key": "x", "wandb_api_key": "x", "Password": "x", "client_secret": "x"}
    kept = {"max_new_tokens": 96, "row_tokens": "4096", "stop_token": "<eos>", "eos_token": "</s>", "stop_tokens": ["a"], "hub_token": None}
    assert public({"nested": [hidden, kept]}) == {"nested": [{}, kept]}
    assert public({"typed": f"--hub_token hf_{'a' * 34} --x 1"}) == {"typed": "--hub_token *** --x 1"}
    assert public("hf-internal-testing/tiny-random-llama") == "hf-internal-testing/tiny-random-llama"
