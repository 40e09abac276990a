"""The rows of a base model's new control tokens: they alone are trained, and they are deployed."""

import functools
import json
import shutil

import pytest
import torch
from bases import RESERVED, dressed, llama3, write_base
from peft import IA3Config, LoraConfig
from safetensors.torch import load_file
from transformers import AutoTokenizer, BitsAndBytesConfig
from trl import SFTTrainer

from sft_recipes import RecipeError, build_trainer, load_recipe, revisit
from sft_recipes.export import deployment
from sft_recipes.export.proof import compare
from sft_recipes.run import describe
from sft_recipes.weights import adapter, base_of, load_base, load_tokenizer

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32")
RECIPE = """
from peft import LoraConfig
from sft_recipes import Recipe, RecipeTrainer

class Mine(RecipeTrainer):
    recipe = Recipe(model={model!r}, data="none", dtype="float32", max_new_tokens=4,
        adapter=LoraConfig(r=4, target_modules=["q_proj", "down_proj"]),
        config=dict(max_steps=3, learning_rate=1e-2, report_to="none", save_strategy="no", per_device_train_batch_size=4))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a base model, see `write_base`; each is made once."""
    return functools.cache(lambda kind, *how: write_base(tmp_path_factory.mktemp(kind), kind, *how))


@pytest.fixture
def trainer_of(own_recipes, tmp_path, chats):
    """Builds a trainer of a person's own recipe, on twelve small conversations or those given."""

    def make(model, rows=None, **overrides):
        (own_recipes / "mine.py").write_text(RECIPE.format(model=model))
        rows = rows or (None if "data" in overrides else chats(12))
        return build_trainer("mine", "full", rows, rows and rows[:3], output_dir=str(tmp_path / "run"), **overrides)

    return make


def deployed(trainer):
    """Deploys what was trained and holds it against the trained model, in this process."""
    judged = trainer.judge()
    trainer.metrics = trainer._measured(judged, judged, None, [], {})
    trainer.run.write("recipe.json", describe(trainer.resolved, trainer.prepared, trainer.layout, base_of(trainer.resolved.recipe)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deployment, "prove", lambda merged, said, folder: compare(merged, said))
        found = trainer._deploy(judged.samples, [])
    assert not found["faults"]
    return found


def rows_changed(before, after):
    """The ids whose row differs between two tables `(rows, width)`, those that only one has included."""
    longest, shared = max(len(before), len(after)), min(len(before), len(after))
    return [i for i in range(longest) if i >= shared or not torch.equal(before[i], after[i])]


CASES = {
    "renamed, tied": ("llama3", True, 0, "chatml", None),
    "renamed, untied, four bits": ("llama3", False, 0, "chatml", NF4),
    "added to spare rows, tied": ("qwen", True, 8, "gemma", None),
    "added, grown, tied, four bits": ("bare", True, 0, "chatml", NF4),
    "added, grown, untied": ("bare", False, 0, "chatml", None),
}


@pytest.mark.parametrize("case", CASES)
def test_new_rows_alone_are_trained_and_deployed(case, base, trainer_of):
    kind, tied, spare, template, quantization = CASES[case]
    model = base(kind, tied, spare)
    trainer = trainer_of(model, chat_template=template, quantization=quantization)
    tokenizer = trainer.prepared.tokenizer
    new = tokenizer.convert_tokens_to_ids(["<start_of_turn>", "<end_of_turn>"] if template == "gemma" else ["<|im_start|>", "<|im_end|>"])
    SFTTrainer.train(trainer)
    proof = deployed(trainer)
    assert proof["kl"] < 1e-8 and proof["generations_equal"] and proof["generations"] == 3
    before, after = (load_file(f"{folder}/model.safetensors") for folder in (model, trainer.run.merged))
    tables = ["model.embed_tokens.weight"] + ([] if tied else ["lm_head.weight"])
    assert all(rows_changed(before[table], after[table]) == sorted(new) for table in tables)
    assert len(after[tables[0]]) == json.loads((trainer.run.merged / "config.json").read_text())["vocab_size"]
    for table in tables:  # and they are no longer what they started as
        rows = [before[table][i] if i < len(before[table]) else before[table].mean(0) for i in new]
        assert all((row - after[table][i]).abs().max() > 1e-3 for row, i in zip(rows, new, strict=True))
    again = AutoTokenizer.from_pretrained(trainer.run.merged)
    asked = {"tokenize": True, "add_generation_prompt": True, "return_dict": False}
    served = [again.apply_chat_template(c["messages"][:1], **asked) for c in trainer.prepared.held_out.conversations]
    assert served == [question.prompt_ids for question in trainer.prepared.questions]
    declared = json.loads((trainer.run.merged / "generation_config.json").read_text())["eos_token_id"]
    assert new[1] in declared


def test_the_run_of_a_base_model_is_whole(base, trainer_of, chats, tmp_path):
    """Trained, merged, proven in a fresh process; merged again from its folder."""
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in chats(12)))
    trainer = trainer_of(base("bare", False), chat_template="chatml", data=str(data), held_out=3)
    trainer.train()
    assert trainer.metrics["merge"]["kl"] < 1e-8 and trainer.metrics["merge"]["generations_equal"]
    assert trainer.metrics["stop_tokens"] == ["<|im_end|>"]
    before = load_file(trainer.run.merged / "model.safetensors")
    assert revisit.merge(str(trainer.run.folder))["kl"] < 1e-8
    after = load_file(trainer.run.merged / "model.safetensors")
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_grown_model_resumes_at_its_checkpoint(base, trainer_of):
    options = dict(chat_template="chatml", save_strategy="steps", save_steps=2)
    whole = trainer_of(base("bare", False), **options)
    SFTTrainer.train(whole)
    shutil.rmtree(whole.run.checkpoints / "checkpoint-3")
    resumed = trainer_of(base("bare", False), **options)
    SFTTrainer.train(resumed, resume_from_checkpoint=True)
    weights = [{n: p.detach() for n, p in t.model.named_parameters() if p.requires_grad} for t in (whole, resumed)]
    assert len(weights[0]) == 6 and all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_full_fine_tuning_learns_them_too(base, trainer_of):
    trainer = trainer_of(base("bare"), chat_template="chatml", adapter=None)
    SFTTrainer.train(trainer)
    assert deployed(trainer)["kl"] < 1e-8
    assert load_file(trainer.run.merged / "model.safetensors")["model.embed_tokens.weight"].shape == (303, 32)


def test_plain_text_is_trained_and_deployed(base, trainer_of):
    """The stop token is a reserved slot; the deployed folder prompts as a completion server does."""
    rows = [{"messages": [{"role": "user", "content": f"Q: {i}\nA:"}, {"role": "assistant", "content": f" {i}"}]} for i in range(12)]
    trainer = trainer_of(base("llama3"), rows, chat_template="plain", stop_token="<|done|>")
    SFTTrainer.train(trainer)
    assert deployed(trainer)["kl"] < 1e-8
    again = AutoTokenizer.from_pretrained(trainer.run.merged)
    prompts = again([row["messages"][0]["content"] for row in rows[:3]])["input_ids"]
    assert [question.prompt_ids for question in trainer.prepared.questions] == prompts
    assert trainer.prepared.stop_ids == {again.convert_tokens_to_ids("<|done|>")} == set(llama3().convert_tokens_to_ids(RESERVED[:1]))


def test_the_fused_loss_of_cuda_trains_the_head_too(base, trainer_of):
    """TRL reads weight and bias of the head by themselves there; the gradients are those of the loss used here."""
    trainer = trainer_of(base("bare", False), chat_template="chatml")
    batch = next(iter(trainer.get_train_dataloader()))
    gradients = []
    for loss_of in (type(trainer).compute_loss, SFTTrainer.compute_loss):
        trainer.model.zero_grad()
        loss_of(trainer, trainer.model, dict(batch), num_items_in_batch=10).backward()
        gradients.append({name: p.grad for name, p in trainer.model.named_parameters() if "tokens_delta" in name})
    assert len(gradients[0]) == 2
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


def planned(base, model_kwargs=(), **fields):
    """The adapter's `trainable_token_indices` for an untied Llama-like base given ChatML, and the tokenizer."""
    recipe = dressed(base("llama3", *model_kwargs), **{"adapter": LORA, **fields})
    tokenizer = load_tokenizer(recipe)
    return adapter(recipe, tokenizer, load_base(recipe, tokenizer)), tokenizer


def test_rows_that_a_recipe_trains_already_are_left_to_it(base):
    config, tokenizer = planned(base, (False,))
    new = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert config.trainable_token_indices == {"model.embed_tokens": new, "lm_head": new} and LORA.trainable_token_indices is None
    assert planned(base)[0].trainable_token_indices == {"model.embed_tokens": new}
    for more, left in (
        (dict(trainable_token_indices=[1]), [1]),
        (dict(modules_to_save=["embed_tokens", "lm_head"]), None),
        (dict(modules_to_save=["lm_head"]), {"model.embed_tokens": new}),
        (dict(target_modules=["q_proj", "embed_tokens"]), {"lm_head": new}),
    ):
        assert planned(base, (False,), adapter=LoraConfig(**{**LORA.to_dict(), **more}))[0].trainable_token_indices == left
    assert planned(base, adapter=LoraConfig(**{**LORA.to_dict(), "modules_to_save": ["lm_head"]}))[0].trainable_token_indices is None
    assert planned(base, adapter=None)[0] is None


def test_rows_that_cannot_be_trained_are_refused(base):
    ia3 = dict(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    with pytest.raises(RecipeError, match=r"a IA3Config cannot train the rows of .* tokens; name model\.embed_tokens in"):
        planned(base, adapter=IA3Config(**ia3))
    assert planned(base, adapter=IA3Config(**ia3, modules_to_save=["embed_tokens"]))[0].modules_to_save == ["embed_tokens"]
    packed = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype="float32", llm_int8_skip_modules=["embed_tokens"])
    with pytest.raises(RecipeError, match=r"lm_head is quantised, so that .* name it in `llm_int8_skip_modules`"):
        planned(base, (False,), quantization=packed)


def test_the_shipped_recipe_keeps_its_adapter():
    recipe = load_recipe("gemma-tools").recipe.at("tiny")
    tokenizer = load_tokenizer(recipe)
    assert adapter(recipe, tokenizer, load_base(recipe, tokenizer)).trainable_token_indices is None


def test_a_row_that_was_never_learned_is_found_in_the_weights(base, tmp_path):
    """As in the base models of Llama 3 (next to nothing) and Qwen2.5 (like the spare rows): in the vocabulary, not learned."""
    recipe = dressed(base("qwen", True, 8), adapter=LORA)
    tokenizer = load_tokenizer(recipe)
    model = load_base(recipe, tokenizer)
    assert adapter(recipe, tokenizer, model).trainable_token_indices is None
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    with torch.no_grad():
        model.get_output_embeddings().weight[start] *= 1e-3
        model.get_output_embeddings().weight[end] = 1.1 * model.get_output_embeddings().weight[-1] + 1e-3
    assert adapter(recipe, tokenizer, model).trainable_token_indices == {"model.embed_tokens": [start, end]}
