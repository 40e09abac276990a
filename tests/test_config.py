"""A recipe resolves to what it declares; wrong fields and values come back as one line each, all together."""

import pytest

from sft_recipes import RecipeConfig, RecipeError
from sft_recipes.config import resolve


def faults(**overrides):
    with pytest.raises(RecipeError) as caught:
        resolve("gemma-tools", **overrides)
    return caught.value.faults


def test_the_declared_optimisation():
    config = resolve("gemma-tools", "full").config
    assert (config.adam_beta1, config.adam_beta2, config.weight_decay, config.max_grad_norm) == (0.9, 0.95, 0.1, 1.0)
    assert (config.learning_rate, config.warmup_steps, config.lr_scheduler_type) == (2e-4, 0.03, "cosine_with_min_lr")
    assert config.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    assert not resolve("gemma-tools", "full", lr_scheduler_type="linear").config.lr_scheduler_kwargs
    assert config.logging_nan_inf_filter is False


def test_texts_are_read_as_the_fields_type():
    resolved = resolve("gemma_tools", "tiny", learning_rate="1e-4", max_steps="3", report_to="none", held_out="7")
    assert (resolved.config.learning_rate, resolved.config.max_steps, resolved.recipe.held_out) == (1e-4, 3, 7)
    assert resolved.name == "gemma-tools" and resolved.config.report_to == []


def test_unknown_fields_all_together_with_the_nearest():
    assert faults(learning_rat=1, modle="x") == [
        "unknown field 'learning_rat', did you mean 'learning_rate'?",
        "unknown field 'modle', did you mean 'model'?",
    ]


def test_wrong_values_all_together():
    assert faults(learning_rate="fast", max_steps="many", held_out="200") == [
        "learning_rate: invalid float value: 'fast'",
        "max_steps: invalid int value: 'many'",
    ]


def test_values_that_upstream_refuses():
    assert "cosin is not a valid SchedulerType" in faults(lr_scheduler_type="cosin")[0]


@pytest.mark.parametrize("value", [0, -1.0])
def test_values_that_make_no_sense(value):
    assert faults(learning_rate=value) == [f"learning_rate is {value}, it must be above 0"]


def test_unknown_scale():
    assert faults(scale="tny") == ["unknown scale 'tny', did you mean 'tiny'?"]


def test_own_data_are_not_judged_on_the_recipes():
    assert resolve("gemma-tools", "tiny", data="mine.jsonl").recipe.held_out == 200
    assert resolve("gemma-tools", "tiny", data="mine.jsonl", held_out="theirs.jsonl").recipe.held_out == "theirs.jsonl"


def test_a_run_announces_itself_to_nobody():
    """TRL pings a server when a trainer is made, unless this constant says no."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _telemetry

    resolve("gemma-tools", "tiny")
    assert constants.HF_HUB_DISABLE_TELEMETRY
    assert "HF_HUB_DISABLE_TELEMETRY" in _telemetry.send_telemetry.__code__.co_names


def test_every_field_of_ours_is_upstreams():
    from trl import SFTConfig

    assert {f for f in RecipeConfig.__dataclass_fields__} == {f for f in SFTConfig.__dataclass_fields__}


def test_truth_values_of_ours_are_read_as_such():
    for text, value in (("true", True), ("false", False), ("0", False)):
        assert resolve("gemma-tools", "tiny", last_turn_only=text).recipe.last_turn_only is value
    assert "last_turn_only: Truthy value expected: got perhaps" in faults(last_turn_only="perhaps")[0]


def test_an_unknown_dtype_is_one_line():
    assert faults(dtype="bfloat") == ["unknown dtype 'bfloat', did you mean 'bfloat16'?"]


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("loss_type", "dft", "loss_type is dft: the loss here is the mean"),
        ("label_smoothing_factor", "0.1", "label_smoothing_factor is 0.1: the loss here is the mean"),
        ("average_tokens_across_devices", "false", "average_tokens_across_devices is False: the loss here is the mean"),
        ("dataloader_drop_last", "true", "dataloader_drop_last is True: the rows of the last batch would not be trained"),
        ("packing", "bdf", "unknown packing 'bdf', did you mean 'bfd'?"),
        ("overlong", "trimm", "unknown overlong 'trimm', did you mean 'trim'?"),
        ("max_lost", "1.5", "max_lost is 1.5: it is a share, from 0 to 1"),
        ("max_lost", "-0.1", "max_lost is -0.1: it is a share, from 0 to 1"),
        ("row_tokens", "0", "row_tokens is 0: a row takes at least one token"),
        ("mask", "everything", "mask is 'everything': it would train a base to write its user's words"),
        ("mask", "complete", "unknown mask 'complete', did you mean 'completion'?"),
        ("loss_per", "tokens", "unknown loss_per 'tokens', did you mean 'token'?"),
        ("bad_step", "skipp", "unknown bad_step 'skipp', did you mean 'skip'?"),
        ("loraplus_lr_ratio", "-1", "loraplus_lr_ratio is -1: it takes an adapter, and a number above 0"),
        ("from_scratch", "true", "from_scratch: a model without trained weights has nothing to adapt or quantise"),
    ],
)
def test_what_would_break_a_promise_is_refused(field, value, told):
    """None of these would be read by anything, or all of them would be read wrongly: better one line now."""
    (fault,) = faults(**{field: value})
    assert fault.startswith(told)


@pytest.mark.parametrize(
    ("typed", "read"),
    [("true", "auto"), ("false", "none"), (True, "auto"), (False, "none"), ("True", "auto"), ("bfd", "bfd"), ("tree", "tree")],
)
def test_packing_takes_upstreams_truth_values_and_never_reaches_upstream(typed, read):
    resolved = resolve("gemma-tools", "tiny", packing=typed)
    assert resolved.recipe.packing == read and resolved.config.packing is False


def test_a_field_of_ours_in_a_recipes_config_is_told_where_it_belongs(own_recipes):
    """Upstream has a field `packing` too, and would take it there without a word."""
    text = "from sft_recipes import Recipe, RecipeTrainer\n\nclass Own(RecipeTrainer):\n"
    text += '    recipe = Recipe(model="m", data="d", config={"packing": True, "mask": "completion", "pakking": 1})\n'
    (own_recipes / "own.py").write_text(text)
    with pytest.raises(RecipeError) as caught:
        resolve("own", "full", packing="none")
    assert caught.value.faults == [
        "unknown field of `config` 'packing': packing is a field of Recipe, not of its config",
        "unknown field of `config` 'mask': mask is a field of Recipe, not of its config",
        "unknown field 'pakking', did you mean 'packing'?",
    ]


def test_the_numbers_of_the_length_policy_are_read_as_such():
    recipe = resolve("gemma-tools", "tiny", max_lost="0.5", row_tokens="4096").recipe
    assert (recipe.overlong, recipe.max_lost, recipe.packing, recipe.row_tokens) == ("trim", 0.5, "auto", 4096)


def test_lora_plus_is_read_as_a_number():
    assert resolve("gemma-tools", "tiny", loraplus_lr_ratio="16").recipe.loraplus_lr_ratio == 16.0
