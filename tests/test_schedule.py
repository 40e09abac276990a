"""Promise 6: the learning rate is the declared curve, and its first step is not wasted."""

import math
import pickle

import pytest
import torch
from transformers import get_scheduler

from sft_recipes.optim.schedule import schedule, warmup_then_cosine


def optimizer(*peaks):
    return torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": peak} for peak in peaks])


def rates(steps, scheduler):
    """The learning rates that each of the next `steps` steps is taken with, by group."""
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def test_ten_steps_two_of_them_to_warm_up():
    curve = [warmup_then_cosine(step, 2, 10) for step in range(13)]
    assert curve[:3] == [0.5, 1.0, 1.0]
    assert curve[6] == pytest.approx(0.55)  # half way down
    assert curve[9] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 7 / 8)) / 2) and curve[9] > 0.13
    assert curve[2:11] == sorted(curve[2:11], reverse=True) and len(set(curve[2:11])) == 9
    assert curve[10:] == [0.1] * 3


def test_without_a_warm_up_it_begins_at_the_peak():
    assert warmup_then_cosine(0, 0, 4) == 1.0
    assert [warmup_then_cosine(step, 0, 1) for step in (0, 1)] == [1.0, 0.1]
    assert warmup_then_cosine(0, 0, 0) == 0.1


@pytest.mark.parametrize(("warmup", "curve"), [(4, [0.25, 0.5, 0.75, 1.0, 0.1]), (8, [0.125, 0.25, 0.375, 0.5, 0.1])])
def test_a_warm_up_as_long_as_the_run_or_longer(warmup, curve):
    assert [warmup_then_cosine(step, warmup, 4) for step in range(5)] == curve


def test_the_floor_is_declared():
    assert warmup_then_cosine(10, 2, 10, floor=0.0) == 0.0
    assert {warmup_then_cosine(step, 2, 10, floor=1.0) for step in range(2, 11)} == {1.0}


def test_each_group_follows_its_own_peak():
    found = rates(10, schedule(optimizer(1e-3, 4e-5), 2, 10, 0.1))
    curve = [warmup_then_cosine(step, 2, 10, 0.1) for step in range(10)]
    assert found == [[pytest.approx(1e-3 * multiple), pytest.approx(4e-5 * multiple)] for multiple in curve]


def test_a_resumed_run_takes_the_same_steps(tmp_path):
    whole = rates(10, schedule(optimizer(1e-3, 4e-5), 2, 10))
    first, second = (schedule(optimizer(1e-3, 4e-5), 2, 10) for _ in range(2))
    assert rates(4, first) == whole[:4]
    torch.save([first.state_dict(), first.optimizer.state_dict()], tmp_path / "state.pt")
    states = torch.load(tmp_path / "state.pt", weights_only=True)
    second.load_state_dict(states[0])
    second.optimizer.load_state_dict(states[1])
    assert rates(6, second) == whole[4:]
    assert pickle.loads(pickle.dumps(first)).state_dict() == first.state_dict()


def upstream(name):
    """Multiples of the peak at the steps 0 to 10 of transformers' schedule of that name, floor 0.1."""
    scheduler = get_scheduler(name, optimizer(1.0), 2, 10, scheduler_specific_kwargs={"min_lr_rate": 0.1})
    return [rate for (rate,) in rates(11, scheduler)]


def test_upstreams_first_step_changes_nothing():
    """The border: but for that, and the shift of its warm-up, the curves are one."""
    theirs = upstream("cosine_with_min_lr")
    assert theirs[:3] == [0.0, 0.5, 1.0]
    assert theirs[2:] == pytest.approx([warmup_then_cosine(step, 2, 10) for step in range(2, 11)])


def test_upstreams_other_one_is_a_step_ahead_and_turns_up_at_the_end():
    """The border: it takes its last step at the floor, not above, and is no longer there when asked once more."""
    theirs = upstream("cosine_warmup_with_min_lr")
    assert theirs[:2] == [0.5, 1.0]
    assert theirs[2:10] == pytest.approx([warmup_then_cosine(step + 1, 2, 10) for step in range(2, 10)])
    assert theirs[9] == pytest.approx(0.1) and theirs[10] > 0.13
