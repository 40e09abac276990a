"""A run whose training loss stayed high is told where to look; one that learned, or says nothing, is left alone."""

import pytest

from sft_recipes.verdict.hints import loss_hint


def history(*losses):
    """As transformers logs them, with evaluations between and its last line."""
    steps = [entry for i, loss in enumerate(losses, 1) for entry in ({"step": i, "loss": loss}, {"step": i, "eval_loss": 9.0})]
    return [{"step": 0, "eval_loss": 9.0}, *steps, {"step": len(losses), "train_runtime": 1.0, "train_loss": 9.0}]


def test_a_loss_that_stays_high_names_what_to_look_at():
    said = loss_hint(history(2.4, 2.2, 2.13), 1.8, "llama-code")
    assert "ended at 2.130" in said and "below 1.8" in said and "`make show RECIPE=llama-code`" in said and "\n" not in said


def test_a_loss_that_fell_gets_no_hint():
    assert loss_hint(history(2.4, 1.5, 0.9), 1.8, "llama-code") is None
    assert loss_hint(history(2.4, 1.8), 1.8, "llama-code") is None


def test_one_hard_step_at_the_end_does_not_speak_for_it():
    fell = [2.4, *[0.9] * 38, 2.5]
    assert loss_hint(history(*fell), 1.8, "x") is None and loss_hint(history(*[2.4] * 39, 0.9), 1.8, "x")


@pytest.mark.parametrize("losses", [(), (float("nan"),), (float("inf"), 1.0)])
def test_nothing_that_can_be_judged_gets_no_hint(losses):
    assert loss_hint(history(*losses), 1.8, "x") is None


def test_a_recipe_without_expectation_gets_no_hint():
    assert loss_hint(history(9.0), None, "x") is None
