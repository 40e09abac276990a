"""Promise 7: the merged folder is the trained model, and a folder that is not gets caught."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sft_recipes import Recipe, export, load_recipe
from sft_recipes.rows import IGNORED
from sft_recipes.weights import load_model

STOP = 5
PROMPTS = [[2, 50, 60, 70], [2, 80], [2, 90, 91, 92]]


@pytest.fixture
def trained(small_base, tmp_path):
    """An NF4 base, and an adapter of it with weights that matter."""
    tiny = load_recipe("gemma-tools").recipe.at("tiny")
    recipe = Recipe(model=small_base, data="none", adapter=tiny.adapter, quantization=tiny.quantization, dtype="float32")
    torch.manual_seed(1)
    config = LoraConfig(**{**tiny.adapter.to_dict(), "init_lora_weights": False})
    model = get_peft_model(load_model(recipe.model, "float32", recipe.quantization), config)
    model.save_pretrained(tmp_path / "adapter")
    return recipe, model.eval(), tmp_path


def record_of(model):
    from sft_recipes.evaluate import generate

    torch.manual_seed(2)
    ids = torch.randint(10, 2000, (4, 30)).tolist()
    rows = [{"input_ids": row, "labels": [IGNORED] * 20 + row[20:]} for row in ids]
    replies = generate(model, PROMPTS, {STOP}, 0, 8)
    return export.record(model, rows, list(zip(PROMPTS, replies, strict=True)), 8)


def test_merged_into_the_dequantised_base_is_the_trained_model(trained):
    recipe, model, folder = trained
    export.merge(recipe, folder / "adapter", {STOP}, folder / "merged")
    proof = export.compare(folder / "merged", record_of(model))
    assert proof["kl"] < 1e-8 and proof["max_kl"] < 1e-7 and proof["tokens"] == 40
    assert proof["generations_equal"] and proof["generations"] == 3


def test_merged_into_the_original_base_is_another_model(trained):
    """Why the base matters: the same adapter on the weights before quantisation is caught."""
    recipe, model, folder = trained
    base = load_model(recipe.model, "float32")
    wrong = PeftModel.from_pretrained(base, str(folder / "adapter")).merge_and_unload()
    export.save(wrong, load_tokenizer(recipe), {STOP}, folder / "merged")
    assert export.compare(folder / "merged", record_of(model))["kl"] > 1e-3


def load_tokenizer(recipe):
    from sft_recipes.weights import load_tokenizer

    return load_tokenizer(recipe)


def test_parameter_names_and_shapes_are_the_base_checkpoints_and_the_vision_tower_is_untouched(trained):
    recipe, _, folder = trained
    export.merge(recipe, folder / "adapter", {STOP}, folder / "merged")
    before, after = (load_file(f"{name}/model.safetensors") for name in (recipe.model, folder / "merged"))
    assert {name: t.shape for name, t in before.items()} == {name: t.shape for name, t in after.items()}
    for name, tensor in before.items():
        if "vision" in name or "multi_modal" in name or "embed" in name or "norm" in name:
            assert torch.equal(tensor, after[name]), name


def test_the_folder_carries_architecture_template_and_stop_tokens(trained, tokenizer):
    recipe, _, folder = trained
    merged = export.merge(recipe, folder / "adapter", {STOP}, folder / "merged")
    assert json.loads((merged / "config.json").read_text())["architectures"] == ["Gemma3ForConditionalGeneration"]
    generation = json.loads((merged / "generation_config.json").read_text())
    assert STOP in generation["eos_token_id"] and 0 not in generation["eos_token_id"] and generation["pad_token_id"] == 0
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(merged).chat_template == tokenizer.chat_template


def test_a_failed_save_leaves_nothing_and_keeps_what_was_there(trained, monkeypatch):
    recipe, _, folder = trained
    export.merge(recipe, folder / "adapter", {STOP}, folder / "merged")
    before = (folder / "merged" / "model.safetensors").read_bytes()
    monkeypatch.setattr(type(load_tokenizer(recipe)), "save_pretrained", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        export.merge(recipe, folder / "adapter", {STOP}, folder / "merged")
    assert (folder / "merged" / "model.safetensors").read_bytes() == before
    assert not list(folder.glob(".*unfinished*"))


def test_the_proof_runs_in_a_fresh_process_and_cleans_up(trained):
    recipe, model, folder = trained
    merged = export.merge(recipe, folder / "adapter", {STOP}, folder / "merged")
    proof = export.prove(merged, record_of(model), folder / ".proof")
    assert proof["kl"] < 1e-8 and not (folder / ".proof").exists()


def test_a_changed_weight_is_caught_with_the_first_difference(trained):
    recipe, model, folder = trained
    merged = export.merge(recipe, folder / "adapter", {STOP}, folder / "merged")
    file = merged / "model.safetensors"
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    name = next(n for n in tensors if n.endswith("layers.1.mlp.down_proj.weight") and "vision" not in n)
    tensors[name] = -tensors[name]
    save_file(tensors, file, metadata=metadata)
    proof = export.compare(merged, record_of(model))
    assert proof["kl"] > 1e-3 and not proof["generations_equal"]
    assert proof["first_difference"]["trained"] != proof["first_difference"]["deployed"]


def test_divergence_by_hand():
    """KL((1/2, 1/2) || (1/4, 3/4)) = ln 2 - ln 3 / 2 = 0.1438 nats; the other token agrees."""
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    q = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    mean, largest = export.divergence(p, q)
    assert largest == pytest.approx(0.143841, abs=1e-6) and mean == pytest.approx(0.0719205, abs=1e-6)


def test_a_stop_token_is_added_to_the_bases_own_and_the_pad_token_is_removed():
    from transformers import GenerationConfig

    assert export._stopping(GenerationConfig(eos_token_id=[1, 0]), {5}, 0).eos_token_id == [1, 5]
    assert export._stopping(None, {5}, None).eos_token_id == [5]
    assert export._stopping(GenerationConfig(eos_token_id=1), {1}, 1).eos_token_id == [1]
