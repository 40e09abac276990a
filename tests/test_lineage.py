"""A run starts from an earlier one: from what it deployed, or with its adapter; and says so."""

import copy
import importlib
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bases import write_base
from peft import get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig
from trl import SFTTrainer

from sft_recipes import RecipeError, build_trainer, load_recipe, revisit
from sft_recipes.cli import fields
from sft_recipes.config import resolve
from sft_recipes.preflight import check
from sft_recipes.preflight.report import quantised_anew
from sft_recipes.run import Run, describe, find
from sft_recipes.weights import adapter as adapter_of
from sft_recipes.weights import base_of, identity, load_adapter, load_base, load_tokenizer, save_adapter

SAID = {"recipe": "mine", "scale": "full"}
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32")
RECIPE = """
from peft import LoraConfig
from sft_recipes import Recipe, RecipeTrainer

class Mine(RecipeTrainer):
    recipe = Recipe(model={model!r}, data="none", dtype="float32", max_new_tokens=4, chat_template="chatml", revision="main",
        adapter=LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"), packing="none",
        config=dict(max_steps=3, learning_rate=1e-2, report_to="none", save_strategy="no", per_device_train_batch_size=12, logging_steps=1))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base that has to grow for its control tokens, whose rows the adapter trains."""
    return write_base(tmp_path_factory.mktemp("base"), "bare", False)


@pytest.fixture
def mine(own_recipes, base):
    """The file of a person's recipe in an empty working directory."""
    (own_recipes / "mine.py").write_text(RECIPE.format(model=base))
    return own_recipes / "mine.py"


@pytest.fixture
def trainer_of(mine, chats):
    """Builds a trainer on twelve small conversations, all of them in one step."""
    return lambda name, **overrides: build_trainer("mine", "full", chats(12), chats(3), output_dir=f"runs/{name}", **overrides)


@pytest.fixture
def run_of(mine):
    """Writes the folder of a run as if it had been trained: trainable weights are moved at random. Gives its model."""

    def make(name, score=0.5, seed=0, **overrides):
        resolved = resolve("mine", "full", output_dir=f"runs/{name}", **overrides)
        recipe, run = resolved.recipe, Run(Path("runs", name))
        tokenizer = load_tokenizer(recipe)
        model = load_base(recipe, tokenizer)
        if resolved.origin and resolved.origin["part"] == "adapter":
            model = load_adapter(model, Run(Path(resolved.origin["run"])).adapter)
        elif recipe.adapter is not None:
            model = get_peft_model(model, adapter_of(recipe, tokenizer, model))
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
        if recipe.adapter is not None:
            save_adapter(model, tokenizer, recipe, run.adapter)
        if recipe.quantization is None:
            whole = model if recipe.adapter is None else copy.deepcopy(model).merge_and_unload()
            whole.save_pretrained(run.merged)
            tokenizer.save_pretrained(run.merged)
        run.write("recipe.json", {**SAID, "overrides": resolved.overrides, "base": base_of(recipe), "from": resolved.origin})
        run.write("metrics.json", {"primary": "right", "after": {"right": score}, "merge": {"faults": []}})
        return model.eval()

    return make


@torch.no_grad()
def mean_loss(model, rows):
    """Over the supervised tokens of separate rows, in nats, by the model's own forward."""
    total, count = 0.0, 0
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"])[1:]
        total += torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item()
        count += int((labels != -100).sum())
    return total / count


def first_loss(trainer):
    """Of the first step, which has all of the data, as it was logged."""
    SFTTrainer.train(trainer)
    assert trainer.state.global_step == 3 and not trainer.unmoved
    return trainer.state.log_history[0]["loss"]


@pytest.mark.parametrize("whole", [{}, {"adapter": None}], ids=["adapter", "all weights"])
def test_from_a_run_training_begins_at_what_it_deployed(whole, run_of, trainer_of, base):
    earlier = run_of("first", **whole)
    later = trainer_of("second", start_from="first", **whole)
    recipe = later.resolved.recipe
    assert (recipe.model, recipe.from_scratch, recipe.revision) == ("runs/first/merged", False, None)
    said = describe(later.resolved, later.prepared, later.layout, base_of(recipe))
    assert said["overrides"]["start_from"] == "first" and said["from"]["part"] == "merged"
    assert said["base"]["sha256"] == said["from"]["sha256"] == identity("runs/first/merged")["sha256"]
    reached = mean_loss(earlier, later.prepared.train.rows)
    assert first_loss(later) == pytest.approx(reached, rel=1e-5)
    assert reached != pytest.approx(mean_loss(load_base(resolve("mine", "full").recipe, later.processing_class), later.prepared.train.rows))


VARIANTS = {"as it is": {}, "four bits": dict(quantization=NF4), "LoRA+": dict(loraplus_lr_ratio=16)}


@pytest.mark.parametrize("which", VARIANTS)
def test_from_an_adapter_training_begins_with_its_weights(which, run_of, trainer_of):
    earlier = run_of("first", **VARIANTS[which])
    later = trainer_of("second", start_from="runs/first/adapter", **VARIANTS[which])
    saved, loaded = load_file("runs/first/adapter/adapter_model.safetensors"), get_peft_model_state_dict(later.model)
    assert saved.keys() == loaded.keys() and all(torch.equal(tensor, loaded[name]) for name, tensor in saved.items())
    learned = {name: p.dtype for name, p in later.model.named_parameters() if p.requires_grad}
    assert learned.keys() == {name for name, p in earlier.named_parameters() if p.requires_grad}
    assert set(learned.values()) == {torch.float32} and any("token_adapter" in name for name in learned)  # rows of new tokens go on
    assert later.optimizer is None and later.state.global_step == 0
    assert first_loss(later) == pytest.approx(mean_loss(earlier, later.prepared.train.rows), rel=1e-5)
    assert {int(state["step"]) for state in later.optimizer.state.values()} == {3}
    assert len({group["initial_lr"] for group in later.optimizer.param_groups}) == (2 if which == "LoRA+" else 1)


def test_whole_modules_that_an_adapter_saves_go_on(run_of, trainer_of, mine):
    rewrite(mine, "task_type", 'modules_to_save=["lm_head", "embed_tokens"], task_type')
    run_of("first")
    later = trainer_of("second", start_from="first/adapter")
    saved, loaded = load_file("runs/first/adapter/adapter_model.safetensors"), get_peft_model_state_dict(later.model)
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in saved.items())
    assert any("modules_to_save" in name and "lm_head" in name for name, p in later.model.named_parameters() if p.requires_grad)


def test_the_earlier_adapter_takes_the_place_of_the_recipes(run_of, mine):
    run_of("first")
    rewrite(mine, "r=4", "r=16")
    assert resolve("mine", "full").recipe.adapter.r == 16
    resolved = resolve("mine", "full", start_from="first/adapter", output_dir="runs/second")
    assert resolved.recipe.adapter.r == 4 and not resolved.recipe.adapter.inference_mode
    report = check(resolved, *(2 * [[{"prompt": "Say 1.", "completion": "1"}]]))
    assert not report.faults and report.counts["optimizer"]


def test_a_deployed_model_that_is_quantised_anew_is_told(run_of):
    run_of("first")
    said = [
        quantised_anew(resolve("mine", "full", start_from=typed, output_dir="runs/second", quantization=how))
        for typed, how in (("first", NF4), ("first", None), ("first/adapter", NF4))
    ]
    assert "quantised anew" in said[0][0] and said[0][0].endswith("--from runs/first/adapter starts at exactly what was trained")
    assert said[1:] == [[], []]


def test_three_generations_are_told(run_of, base):
    run_of("a", score=0.25)
    run_of("b", score=0.5, start_from="a")
    run_of("c", start_from="runs/b/adapter", model="runs/a/merged")
    told = find("c").read("recipe.json")
    assert told["base"]["model"] == "runs/a/merged" and told["base"]["sha256"] == identity("runs/a/merged")["sha256"]
    b = told["from"]
    assert (b["run"], b["part"], b["recipe"], b["scale"], b["primary"], b["score"]) == ("runs/b", "adapter", "mine", "full", "right", 0.5)
    assert b["base"] == told["base"] and b["sha256"] == identity("runs/b/adapter")["sha256"]
    a = b["from"]
    assert (a["run"], a["part"], a["score"], a["from"]) == ("runs/a", "merged", 0.25, None)
    assert a["base"] == identity(base) and a["sha256"] == told["base"]["sha256"]


def rewrite(file, old, new):
    """Change a recipe's file, and have it read again."""
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    sys.modules.pop("recipes.mine", None)
    importlib.invalidate_caches()


def refused(match, **overrides):
    with pytest.raises(RecipeError, match=match) as caught:
        resolve("mine", "full", **{"output_dir": "runs/second", **overrides})
    return caught.value.faults


def test_a_run_that_cannot_be_started_from_is_refused(run_of):
    run_of("first")
    for typed in ("frist", "runs/frist", "runs/frist/adapter", "frist/merged"):
        refused("no run at runs/frist, did you mean 'first'?", start_from=typed)
    itself = "is where this run itself would go, and would be moved aside; name another folder with --output_dir"
    refused(f"start_from first: runs/first {itself}", output_dir="runs/first", start_from="first")
    shutil.copytree("runs/first", "runs/first/arm")  # an arm of the run that is moved aside
    refused(f"runs/first/arm {itself}", output_dir="runs/first", start_from="first/arm")
    refused("cannot train an adapter on; start from the model: --from runs/first", start_from="first/adapter", adapter=None)
    refused("it decides on `model`; leave model out", start_from="first", model="other")
    wrong = dict(output_dir="runs/first", model="x", learning_rate="-1", loraplus_lr_ratio="-1")
    assert len(refused("learning_rate", start_from="first", **wrong)) == 4  # with everything else that is wrong


def test_an_unfinished_or_refused_run_is_refused(run_of):
    run_of("first")
    run, metrics = find("first"), find("first").read("metrics.json")
    (run.folder / "metrics.json").unlink()
    for typed in ("first", "first/adapter"):
        refused("holds no metrics.json: the run has not finished", start_from=typed)
    shutil.rmtree(run.merged)
    run.write("metrics.json", {**metrics, "merge": {"faults": ["another"]}})
    trained_on = "its adapter can be trained on: --from runs/first/adapter"
    refused(f"was not the one that was trained, and was refused; {trained_on}", start_from="first")
    assert resolve("mine", "full", start_from="first/adapter", output_dir="runs/second").origin["part"] == "adapter"
    run.write("metrics.json", metrics)
    refused("holds no merged/: the run has not finished", start_from="first")
    shutil.rmtree(run.adapter)
    refused("holds no adapter/: the run has not finished", start_from="first/adapter")
    run.merged.mkdir()
    refused("holds no adapter/: it trained all weights; start from its model: --from runs/first", start_from="first/adapter")


def test_an_adapter_of_another_base_is_a_fault_of_the_check(run_of, trainer_of, tmp_path_factory):
    run_of("first")
    other = write_base(tmp_path_factory.mktemp("other"), "bare", True)
    with pytest.raises(RecipeError, match=r"first/adapter was trained on .*; name its own base with --model"):
        trainer_of("second", start_from="first/adapter", model=other)
    with pytest.raises(RecipeError, match=r"first/adapter was trained with quantization: none; here: .*nf4"):
        trainer_of("second", start_from="first/adapter", quantization=NF4)


def test_a_run_opens_again_with_the_one_it_started_from(run_of):
    run_of("first")
    run_of("second", start_from="first")
    assert revisit.reopen("second")[1].recipe.model == "runs/first/merged"
    find("first").set_aside()
    run_of("first", seed=1)  # another of that name
    assert revisit.reopen("second")[1].recipe.model == "runs/first.1/merged"
    shutil.rmtree("runs/first.1")
    with pytest.raises(RecipeError, match="runs/second started from runs/first/merged, which has changed since; put back"):
        revisit.reopen("second")
    shutil.rmtree("runs/first")
    with pytest.raises(RecipeError, match="runs/second started from runs/first/merged, which is gone; put back"):
        revisit.reopen("second")


def test_another_model_leaves_the_recipes_revision_behind(mine, base):
    assert resolve("mine", "full").recipe.revision == "main"
    assert resolve("mine", "full", model=base).recipe.revision is None
    assert resolve("mine", "full", model=base, revision="v2").recipe.revision == "v2"
    assert load_recipe("gemma-tools").recipe.with_fields({"revision": "v1"}).at("tiny").revision is None


def test_a_model_from_scratch_goes_on_from_what_it_has_learned(run_of, mine):
    """It is not drawn anew, it may still be trained on everything, and now has something to adapt."""
    run_of("first", adapter=None)
    rewrite(mine, "packing=", 'from_scratch=True, mask="everything", packing=')
    refused("a model without trained weights has nothing to adapt")
    for adapter in ({}, {"adapter": None}):
        recipe = resolve("mine", "full", start_from="first", output_dir="runs/second", **adapter).recipe
        assert not recipe.from_scratch and recipe.mask == "everything" and recipe.model == "runs/first/merged"


def test_the_command_calls_it_from():
    assert fields(SimpleNamespace(args=["--from", "first", "--max-steps", "3"])) == {"start_from": "first", "max_steps": "3"}
