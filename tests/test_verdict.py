"""What is said of a run: which checkpoint was kept and why, where it overfits, what it forgot. Plain numbers in, plain words out."""

import pytest

from sft_recipes.verdict.best import best, evaluations
from sft_recipes.verdict.curves import curves, overfitting, trained
from sft_recipes.verdict.forgetting import forgetting, rise, too_much


def history(*points, train=None):
    """`(step, eval_loss, exact)` as transformers logs them, before the first step too, with training losses in between."""
    logged = [{"step": step, "eval_loss": loss, "eval_exact": score, "eval_runtime": 1.0} for step, loss, score in points]
    return sorted([*logged, *({"step": step, "loss": loss} for step, loss in (train or {}).items())], key=lambda e: e["step"])


RUN = history((0, 3.0, 0.0), (10, 1.0, 0.5), (20, 0.5, 0.7), (30, 0.6, 0.9))


def test_the_choice_is_written_down_and_where_the_lowest_loss_was_elsewhere():
    found = best(RUN, "eval_exact", True, 30, "checkpoint-30")
    assert found["metric"] == "exact" and (found["step"], found["value"], found["evaluations"]) == (30, 0.9, 3)
    assert found["lowest_loss"] == {"step": 20, "eval_loss": 0.5, "value": 0.7} and found["agree"] is False
    assert found["said"] == (
        "kept: step 30, the best exact of 3 evaluations (0.900); the lowest held-out loss, 0.500, was at step 20, where exact is 0.700"
    )


def test_where_score_and_loss_agree_nothing_more_is_said():
    found = best(history((0, 3.0, 0.0), (10, 1.0, 0.5), (20, 0.5, 0.7)), "exact", True, 20, "checkpoint-20")
    assert found["agree"] and found["said"] == "kept: step 20, the best exact of 2 evaluations (0.700)"


def test_a_choice_by_the_loss_says_the_loss_once():
    found = best(RUN, "eval_loss", False, 20, "checkpoint-20")
    assert found["said"] == "kept: step 20, the best loss of 3 evaluations (0.500)"
    assert "exact" not in best(RUN, "loss", False, 30, "checkpoint-30")["said"]


@pytest.mark.parametrize(("greater", "before", "said"), [(True, 0.9, True), (True, 0.89, False), (False, 0.9, True), (False, 0.91, False)])
def test_a_best_that_is_no_better_than_before_training_is_called_that(greater, before, said):
    found = best(history((0, 3.0, before), (10, 1.0, 0.9)), "exact", greater, 10, "checkpoint-10")["said"]
    assert ("no better than before training" in found) is said


def test_where_nothing_was_chosen_the_reason_is_said():
    found = best(history((0, 3.0, 0.0)), "exact", True, 40, None, "there was no evaluation while training (eval_strategy)")
    assert found["said"] == "kept: the last step, 40; there was no evaluation while training (eval_strategy)"
    assert found["value"] is None and found["evaluations"] == 0 and "lowest_loss" not in found


def test_of_two_evaluations_at_a_step_the_later_counts():
    assert evaluations(history((5, 2.0, 0.1)) + history((5, 1.0, 0.2)))[5]["eval_loss"] == 1.0


FELL = {5: 2.0, 10: 1.0, 15: 0.6, 20: 0.5, 25: 0.3, 30: 0.1}


def test_overfitting_is_said_with_the_step_where_the_held_out_loss_turned():
    found = curves(history((0, 3.0, 0), (10, 1.0, 0), (20, 0.5, 0), (30, 0.6, 0), train=FELL))
    assert found["overfitting"]["step"] == 20 and found["overfitting"]["last_eval_loss"] == 0.6
    assert found["said"] == (
        "training loss 2.000 to 0.100; held-out loss 3.000 to 0.600; held-out loss turned at step 20 (0.500) and was 0.600 at step 30, "
        "while the training loss fell on from 0.550 to 0.200: it overfits from there"
    )


@pytest.mark.parametrize(
    ("held_out", "train"),
    [
        ({0: 3.0, 10: 1.0, 20: 0.5, 30: 0.4}, FELL),  # fell to the end
        ({0: 3.0, 10: 1.0, 20: 0.5, 30: 0.509}, FELL),  # within the noise
        ({0: 3.0, 10: 1.0, 20: 0.5, 30: 0.6}, FELL | {25: 0.7, 30: 0.7}),  # both rose: no overfitting, but a run that went wrong
        ({0: 3.0, 10: 1.0, 20: 0.5, 30: 0.6}, {}),  # nothing known of training
        ({0: 0.4, 10: 1.0, 20: 0.9}, FELL),  # lowest before training: it did harm, and never turned
        ({0: 3.0, 10: float("nan"), 20: 0.5, 30: 0.5}, FELL),
        ({0: 3.0, 10: 1.0}, FELL),
        ({}, {}),
    ],
)
def test_what_is_no_overfitting(held_out, train):
    assert overfitting(train, held_out) is None


def test_curves_without_anything_say_nothing():
    assert curves([]) == {"overfitting": None, "said": ""}
    assert curves([{"train_runtime": 3.0, "step": 4}])["said"] == ""


def test_training_losses_are_those_of_steps():
    assert trained([{"step": 1, "loss": 2.0}, {"step": 1, "eval_loss": 9.0}, {"loss": 1.0}]) == {1: 2.0}


BEFORE, AFTER = {"retain_loss": 2.0, "retain_accuracy": 0.5}, {"retain_loss": 2.4, "retain_accuracy": 0.41}


def test_what_was_forgotten_is_said_with_the_way_to_keep_more():
    found = forgetting(BEFORE, AFTER, 0.1, rows=10, tokens=900)
    assert found["before"] == {"loss": 2.0, "accuracy": 0.5} and found["rise"] == 0.4 and "end" not in found
    assert found["said"].startswith("on the data to be kept, loss 2.000 to 2.400, accuracy 50.0% to 41.0%: a rise above max_rise")
    assert "a larger --mix" in forgetting(BEFORE, AFTER, 0.1, 10, 900, mix=0.2)["said"]
    assert "into the stream" in forgetting(BEFORE, AFTER, 0.1, 10, 900, mix=None)["said"]
    assert "--mix 0.2" in found["said"] and rise(AFTER, BEFORE) == pytest.approx(-0.4)


def test_within_the_bound_only_the_change_is_said():
    found = forgetting(BEFORE, AFTER, 0.5, 10, 900, end=BEFORE)
    assert found["said"].endswith("41.0%") and found["end"] == {"loss": 2.0, "accuracy": 0.5}
    assert "0.400 above" in too_much(30, 0.4, 0.1) and "step 30" in too_much(30, 0.4, 0.1)
