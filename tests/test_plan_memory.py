"""The arithmetic of a plan, against what papers and makers say and what the libraries have; no model is loaded."""

import dataclasses

import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from peft import LoraConfig, get_peft_model
from torch import nn

from sft_recipes import RecipeError
from sft_recipes.plan import compute, fitting
from sft_recipes.plan.devices import KNOWN, find
from sft_recipes.plan.memory import ENGINES, Setting, moments, needed, state
from sft_recipes.plan.model import Curve, Model, Pass, Weight, optimizer_bytes, stored_bytes

FLAT = Pass(*[Curve(0, 0)] * 3)


def model(parameters, stored="float32", trainable=True, **passes):
    weights = (Weight((parameters,), stored, trainable, 0),)
    every = {(kind, again): FLAT for kind in ("stored", "mixed", "bfloat16") for again in (False, True)}
    return Model(weights, 0, 0, every | passes.get("passes", {}))


def on(engine="ddp", devices=1, **fields):
    return Setting(engine, devices, **{"rows": 1, "length": 1, "supervised": 0, **fields})


@pytest.mark.parametrize("size, adam", [(70e9, 560e9), (405e9, 3.24e12)])
def test_the_state_of_adamw_is_two_float32_numbers_a_parameter(size, adam):
    """Of 70 billion parameters 560 GB, of 405 billion 3.2 TB; with 16-bit weights and gradients about 5 TB."""
    assert optimizer_bytes(int(size), (int(size),), "adamw_torch_fused") == adam
    weights, gradients, optimizer = state(model(int(size)), on())
    assert (weights, gradients, optimizer) == (4 * size, 4 * size, adam)
    if size == 405e9:
        assert optimizer_bytes(int(size), (int(size),), "adamw_torch") + 2 * stored_bytes(int(size), "bfloat16") == pytest.approx(
            5e12, rel=0.03
        )


def test_zero_shards_what_its_paper_says():
    """7.5 billion parameters on 64 devices (arXiv 1910.02054, figure 1): 16.6 GB with gradients and state in parts, 1.9 GB with all."""
    found = {e: sum(state(model(int(7.5e9)), on(e, 64, dtype="bfloat16"))) / 1e9 for e in ENGINES}
    assert found["zero2"] == pytest.approx(16.6, abs=0.1) and found["zero3"] == pytest.approx(1.9, abs=0.05)
    assert found["ddp"] == 120 and found["fsdp2"] == 120 / 64


def test_fsdp2_cuts_along_the_first_dimension():
    """Six rows on four devices: the first has two, a third of the tensor and not a quarter."""
    weight = Weight((6, 10), "float32", True, 0)
    found = state(dataclasses.replace(model(1), weights=(weight,)), on("fsdp2", 4))
    assert found == (4 * 20, 4 * 20, 8 * 20)


def test_lora_of_rank_8_on_4096_by_4096_has_65536_parameters():
    with torch.device("meta"):
        wrapped = get_peft_model(nn.Sequential(nn.Linear(4096, 4096, bias=False)), LoraConfig(r=8, target_modules=["0"]))
    trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert trained == 65_536 and 4096 * 4096 / trained == 256


@pytest.mark.parametrize("shape, double", [((512, 64), True), ((100, 33), True), ((512, 64), False)])
def test_bytes_of_nf4_are_those_of_bitsandbytes(shape, double):
    packed, found = quantize_4bit(torch.randn(shape), quant_type="nf4", compress_statistics=double, blocksize=64)
    held = packed.nbytes + found.absmax.nbytes + found.code.nbytes
    if double:
        held += found.state2.absmax.nbytes + found.state2.code.nbytes + found.offset.nbytes
    assert abs(stored_bytes(shape[0] * shape[1], "nf4" if double else "4bit") - held) <= 1028  # one without double has one table less
    assert not double or stored_bytes(shape[0] * shape[1], "nf4") == held


def test_nf4_takes_a_bit_more_than_four_bits():
    """4.127 a parameter, as QLoRA's paper has it (0.127 for the scales)."""
    assert 8 * stored_bytes(10**9, "nf4") / 1e9 == pytest.approx(4.127, abs=1e-3)


def test_what_is_frozen_has_neither_gradient_nor_state():
    weights, gradients, optimizer = state(model(1000, "bfloat16", trainable=False), on())
    assert (weights, gradients, optimizer) == (2000, 0, 0)


def test_ddp_has_its_gradients_twice_and_one_device_once():
    one, many = (needed(model(1000), on(devices=n)) for n in (1, 2))
    assert many.total - one.total == 4 * 1000


def test_eight_bits_are_a_quarter_but_for_small_tensors():
    assert optimizer_bytes(2**20, (2**20,), "adamw_bnb_8bit") == 2 * (2**20 + 4 * 2**12)
    assert optimizer_bytes(100, (100,), "adamw_bnb_8bit") == 800


def test_the_worst_moment_is_one_of_them_and_accumulated_gradients_meet_all_activations():
    """With one micro-batch a gradient is not there yet while all activations are."""
    big = {("stored", False): Pass(Curve(0, 1000.0), Curve(0, 1000.0), Curve(0, 1100.0))}
    alone, many = (moments(model(10, passes=big), on(length=10, accumulation=n)) for n in (1, 2))
    assert [m.moment for m in alone] == [m.moment for m in many]
    assert max(m.total for m in alone) == 12 * 10 + 11_000 and max(m.total for m in many) == 16 * 10 + 11_000


def test_the_head_alone_is_shown_the_supervised_positions():
    head = dataclasses.replace(model(10), vocabulary=1000, hidden=8)
    loss = {n: moments(head, on(supervised=n))[1].loss for n in (10, 20)}
    assert loss[20] == 2 * loss[10] == 20 * (1000 * 12 + 8 * 8)
    fused = moments(dataclasses.replace(head, vocabulary=10**6), on(supervised=10**5, cuda=True, dtype="bfloat16"))[1].loss
    assert fused == 4096 * 32768 * 2 + 10**5 * 8 * 6  # a tile, and the hidden states


def test_ten_billion_tokens_through_405_billion_parameters():
    assert compute.flops(405e9, 10e9) == pytest.approx(2.4e22, rel=0.02)
    assert compute.flops(405e9, 10e9, share=0) == pytest.approx(2.4e22 * 2 / 3, rel=0.02)


def test_hours_and_cost_are_of_all_devices():
    bill = compute.bill(1e9, 3600e12 * 0.4 * 8, 8, 1e12, 0.4, 3.0)
    assert bill.hours == pytest.approx(1.0) and bill.cost == pytest.approx(24.0)
    assert compute.bill(1, 1, 1, None, 0.4, 3.0).cost is None


def test_devices_are_found_as_people_write_them():
    assert find("H100") is KNOWN["h100"] and find("A100_80").memory == 80e9 and not find("cpu").cuda
    with pytest.raises(RecipeError, match="unknown GPU 'h10', did you mean 'h100'"):
        find("h10")


# Fitting


LONG = {(kind, again): Pass(*[Curve(0, 1e6 if again else 1e7)] * 3) for kind in ("stored", "mixed", "bfloat16") for again in (False, True)}


def change(room, devices=1, engine="ddp", own=None, length=4000, longest=1000, **fields):
    own = own or model(10**8, passes=LONG)
    small = model(10**8, "bfloat16", trainable=False, passes=LONG)
    tiny = model(10**8, "nf4", trainable=False, passes=LONG)
    models = {fitting.OWN: own, fitting.LORA: small, fitting.QLORA: tiny}.__getitem__
    setting = on(engine, devices, length=length, cuda=True, **fields)
    found = fitting.smallest(models, setting, fitting.Row(batch=4, longest=longest), room)
    if found:
        assert fitting.after(models, found) <= room
    return found if found is None else [one.words for one in found]


def test_the_smallest_change_comes_first_and_none_where_it_fits():
    """42.2 GB as it is: weights and state 1.2, activations 40, CUDA 1."""
    assert change(50e9) == []
    assert change(10e9) == ["--gradient_checkpointing true"]
    assert change(25e9, checkpointing=True, length=40_000) == ["--per_device_train_batch_size 2 --gradient_accumulation_steps 2"]


def test_changes_are_taken_together_where_one_is_not_enough_and_what_is_not_needed_is_left():
    found = change(5e9, length=8000)
    assert found == ["--gradient_checkpointing true", "--per_device_train_batch_size 1 --gradient_accumulation_steps 4"]


def test_what_is_learned_is_left_alone_as_long_as_two_other_changes_do():
    """A LoRA alone would do, too."""
    own, light = model(10**8, passes=LONG), model(10**8, "bfloat16", trainable=False)
    start = on(length=8000, cuda=True)
    found = fitting.smallest({fitting.OWN: own, fitting.LORA: light, fitting.QLORA: light}.__getitem__, start, fitting.Row(4, 1000), 5e9)
    assert [one.model for one in found] == [fitting.OWN, fitting.OWN]
    last = found[-1].setting
    assert last.checkpointing and (last.length, last.accumulation) == (2000, 4) and last.length * last.accumulation == start.length


def test_state_that_is_too_large_is_put_in_parts_before_it_is_changed():
    heavy = dataclasses.replace(model(1), weights=tuple(Weight((10**8,), "float32", True, i) for i in range(100)))
    assert change(60e9, 8, own=heavy) == ["--engine fsdp2"]
    assert change(60e9, 1, own=heavy) == ["a LoRA of rank 16 on every linear layer instead of all weights"]


def test_what_nothing_helps_is_said():
    assert change(1e6) is None


def test_batches_are_parted_such_that_a_step_stays_as_large():
    """Nine by three and not by two, whether rows are packed or not; a row with tokens of its own in halves, its batch is no matter."""
    light = model(10**6, passes=LONG)
    for row in (fitting.Row(9, 400), fitting.Row(9, 400, packed=False), fitting.Row(1, 400, row_tokens=3600)):
        start = on(length=3600 if row.packed else 400, rows=1 if row.packed else 9, checkpointing=True)
        found = fitting.smallest(lambda kind: light, start, row, 3e9)
        size = "--row_tokens 1800 --gradient_accumulation_steps 2"
        assert found[0].words == (size if row.row_tokens else "--per_device_train_batch_size 3 --gradient_accumulation_steps 3")


def test_a_change_that_is_refused_is_not_proposed():
    heavy = dataclasses.replace(model(1), weights=tuple(Weight((10**8,), "float32", True, i) for i in range(100)))
    models = {fitting.OWN: heavy, fitting.LORA: model(1, trainable=False)}.__getitem__
    start, row = on("ddp", 8, checkpointing=True), fitting.Row(1, 1)
    assert [c.words for c in fitting.smallest(models, start, row, 60e9)] == ["--engine fsdp2"]
    found = fitting.smallest(models, start, row, 60e9, lambda change: change.setting.engine != "ddp")
    assert [c.words for c in found] == ["a LoRA of rank 16 on every linear layer instead of all weights"]


def test_a_run_that_may_not_be_started_gets_a_change_although_it_fits():
    found = fitting.smallest(
        {fitting.OWN: model(100)}.__getitem__, on("fsdp2", 8), fitting.Row(1, 1), 60e9, lambda c: c.setting.engine == "fsdp2"
    )
    assert [c.words for c in found] == ["--engine ddp"]
