"""Promise 7: the deployed folder is the trained model, whatever was trained; and a folder that is not gets caught by name."""

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bases import dressed, write_base
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from sft_recipes import Recipe, RecipeError, export, load_recipe, screen
from sft_recipes.evaluate import generate
from sft_recipes.export import card, deployment, folder, merging, proof
from sft_recipes.rows import IGNORED
from sft_recipes.weights import adapter, load_base, load_tokenizer, save_adapter

STOP = 5  # <end_of_turn> of the tiny tokenizer
PROMPTS = [[2, 50, 60, 70], [2, 80], [2, 90, 91, 92]]
SMALL = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16)
TEXT = dict(**SMALL, vocab_size=2048, initializer_range=0.2, bos_token_id=2, eos_token_id=1, pad_token_id=None)
EXPERTS = dict(moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2)
BASES = {
    "Llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**TEXT, tie_word_embeddings=True)),
    "Llama": lambda: LlamaForCausalLM(LlamaConfig(**TEXT)),
    "Qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**TEXT)),
    "experts": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**TEXT, **EXPERTS)),
}
LINEAR = dict(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
LANGUAGE = {**LINEAR, "target_modules": r".*language_model.*\.(q_proj|v_proj|down_proj)"}
TABLES = {**LINEAR, "target_modules": ["q_proj", "embed_tokens"]}
FUSED = dict(r=4, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
NF4 = load_recipe("gemma-tools").recipe.at("tiny").quantization

# What was trained: a base, an adapter on it, and its quantisation.
TRAINED = {
    "Gemma 3, multimodal, LoRA": ("gemma", LANGUAGE, None),
    "Gemma 3, multimodal, QLoRA": ("gemma", LANGUAGE, NF4),
    "Gemma 3, DoRA on QLoRA": ("gemma", {**LANGUAGE, "use_dora": True}, NF4),
    "Llama, LoRA": ("Llama", LINEAR, None),
    "Llama, rsLoRA": ("Llama", {**LINEAR, "use_rslora": True}, None),
    "Llama, DoRA": ("Llama", {**LINEAR, "use_dora": True}, None),
    "Llama, QLoRA": ("Llama", LINEAR, NF4),
    "Llama, whole head": ("Llama", {**LINEAR, "modules_to_save": ["lm_head"]}, None),
    "Llama, single tokens": ("Llama", {**LINEAR, "trainable_token_indices": [5, 9]}, None),
    "Llama tied, LoRA": ("Llama, tied", LINEAR, None),
    "Llama tied, QLoRA": ("Llama, tied", LINEAR, NF4),
    "Llama tied, single tokens": ("Llama, tied", {**LINEAR, "trainable_token_indices": [5, 9]}, None),
    "Llama tied, whole head": ("Llama, tied", {**LINEAR, "modules_to_save": ["lm_head"]}, None),
    "Llama tied, LoRA on the embedding": ("Llama, tied", TABLES, None),
    "Llama tied, LoRA on both as one": ("Llama, tied", {**TABLES, "ensure_weight_tying": True}, None),
    "Qwen3, LoRA": ("Qwen3", LINEAR, None),
    "experts, LoRA on fused weights": ("experts", FUSED, None),
}
PARTED = {"Llama tied, whole head", "Llama tied, LoRA on the embedding"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory, tokenizer, small_base):
    """Folders of small base models, all with the tiny tokenizer."""
    found = {"gemma": small_base}
    for name, make in BASES.items():
        torch.manual_seed(0)
        found[name] = str(tmp_path_factory.mktemp("bases") / name.replace(", ", "-"))
        make().save_pretrained(found[name])
        tokenizer.save_pretrained(found[name])
    return found


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """A fresh process takes seconds to start; that it gives the same is a test of its own."""
    monkeypatch.setattr(deployment, "prove", lambda merged, record, folder: proof.compare(merged, record))


def trained(recipe, target, config=None):
    """An adapter of the recipe's with weights that matter, saved in `target`, on its base."""
    torch.manual_seed(1)
    base = load_base(recipe, load_tokenizer(recipe))
    model = get_peft_model(base, config or recipe.adapter).eval()
    with torch.no_grad():
        for weight in (p for p in model.parameters() if p.requires_grad):
            weight.add_(torch.randn_like(weight) * 0.1)
    save_adapter(model, load_tokenizer(recipe), recipe, target)
    return model


def said(model, recipe, stop=STOP, rows=4):
    """The record of a trained model on random rows."""
    torch.manual_seed(2)
    ids = torch.randint(10, min(2000, model.get_input_embeddings().weight.shape[0]), (rows, 30)).tolist()
    rows = [{"input_ids": row, "labels": [IGNORED] * 20 + row[20:]} for row in ids]
    replies = generate(model, PROMPTS, {stop, 1}, 0, 8)  # 1 is the base's own
    tokenizer = load_tokenizer(recipe)
    messages = [{"role": "user", "content": "Say 12."}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    served = [{"messages": messages, "tools": None, "ids": prompt, "source": "here:1"}]
    return export.record(model, recipe, tokenizer, {stop}, rows, list(zip(PROMPTS, replies, strict=True)), served)


def about(recipe):
    """What the card tells, made up."""
    counts = {"conversations": 2, "turns": 3, "supervised_tokens": 40}
    resolved = {"from_scratch": False, "adapter": {}, "quantization": recipe.quantization, "template_kwargs": {}}
    base = {"model": recipe.model, "revision": None}
    made = {"recipe": "mine", "scale": "tiny", "overrides": {}, "resolved": resolved, "base": base, "from": None}
    samples = [{"stage": "after", "asked": f"{i} ```", "reply": f"said {i}"} for i in range(6)]
    return {
        "recipe": {**made, "data": {"train": "a1", "held_out": "b2"}, "versions": {"torch": "2"}},
        "metrics": {
            "primary": "exact",
            "before": {"exact": 0.0},
            "after": {"exact": 0.875},
            "supervision": {"train": counts, "held_out": counts},
            "stop_tokens": ["<end_of_turn>"],
        },
        "samples": samples,
    }


def recipe_of(bases, name, **fields):
    base, config, quantization = TRAINED[name]
    same = dict(data="none", dtype="float32", max_new_tokens=8)
    wanted = dict(**same, model=bases[base], adapter=LoraConfig(**config), quantization=quantization)
    return Recipe(**{**wanted, **fields})


def deployed(recipe, model, where, **fields):
    return export.deploy(recipe, load_tokenizer(recipe), where / "adapter", said(model, recipe, **fields), where / "merged", about(recipe))


@pytest.mark.parametrize("name", TRAINED)
def test_the_deployed_folder_is_the_trained_model(bases, name, tmp_path):
    recipe = recipe_of(bases, name)
    model = trained(recipe, tmp_path / "adapter")
    found = deployed(recipe, model, tmp_path)
    assert not found["faults"] and found["kl"] < 1e-8 and found["max_kl"] < 1e-7 and found["tokens"] == 40
    assert found["generations_equal"] and found["generations"] == 3 and found["prompts"] == 1
    assert found["loss"] == pytest.approx(found["trained_loss"], abs=1e-5)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["architectures"] == json.loads(Path(recipe.model, "config.json").read_text())["architectures"]
    assert config.get("tie_word_embeddings", True) == (("tied" in name or "Gemma" in name) and name not in PARTED)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "merged"]
    assert {p.suffix for p in (tmp_path / "merged").iterdir()} == {".safetensors", ".json", ".jinja", ".md"}


def test_peft_alone_merges_an_adapter_on_a_tied_table_into_both(bases, tmp_path):
    """The border: what `merging._own_tables` is for; where PEFT parts them by itself, it can go."""
    recipe = recipe_of(bases, "Llama tied, LoRA on the embedding")
    model, ids = trained(recipe, tmp_path / "adapter"), torch.tensor([[2, 50, 60, 70]])
    expected = model(input_ids=ids).logits
    assert (model.merge_and_unload(safe_merge=True)(input_ids=ids).logits - expected).abs().max() > 1


def test_names_and_shapes_are_the_checkpoints_and_what_was_not_trained_is_untouched(bases, tmp_path):
    recipe = recipe_of(bases, "Gemma 3, multimodal, QLoRA")
    deployed(recipe, trained(recipe, tmp_path / "adapter"), tmp_path)
    before, after = (load_file(f"{name}/model.safetensors") for name in (recipe.model, tmp_path / "merged"))
    assert {name: t.shape for name, t in before.items()} == {name: t.shape for name, t in after.items()}
    for name, tensor in before.items():
        if "vision" in name or "multi_modal" in name or "embed" in name or "norm" in name:
            assert torch.equal(tensor, after[name]), name


@pytest.mark.parametrize("naming", ["language_model.model.", "model.language_model."])
def test_both_namings_of_gemma_3_come_back_as_they_were(bases, naming, tmp_path):
    """The Hub's checkpoints have the older names; servers match on them."""
    base = tmp_path / "base"
    shutil.copytree(bases["gemma"], base)
    whole = load_file(base / "model.safetensors")
    inner = next(name for name in whole if "embed_tokens" in name).removesuffix("embed_tokens.weight")
    outer = "model." if naming.startswith("model.") else ""
    renamed = {
        naming + name.removeprefix(inner) if name.startswith(inner) else outer + name.removeprefix("model."): t for name, t in whole.items()
    }
    save_file(renamed, base / "model.safetensors", metadata={"format": "pt"})
    recipe = recipe_of(bases, "Gemma 3, multimodal, LoRA", model=str(base))
    assert not deployed(recipe, trained(recipe, tmp_path / "adapter"), tmp_path)["faults"]
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == renamed.keys()


def test_new_tokens_in_grown_tables_are_deployed(tmp_path):
    recipe = dressed(write_base(tmp_path / "base", "bare"), adapter=LoraConfig(**LINEAR), max_new_tokens=8)
    tokenizer = load_tokenizer(recipe)
    config = adapter(recipe, tokenizer, load_base(recipe, tokenizer))
    model = trained(recipe, tmp_path / "adapter", config)
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    found = deployed(recipe, model, tmp_path, stop=stop)
    assert not found["faults"] and found["kl"] < 1e-8
    table = load_file(tmp_path / "merged" / "model.safetensors")["model.embed_tokens.weight"]
    assert len(table) == len(tokenizer) > len(load_file(tmp_path / "base" / "model.safetensors")["model.embed_tokens.weight"])
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text())["eos_token_id"][-1] == stop


def test_merged_in_float32_and_cast_once(bases, tmp_path):
    """In bfloat16 each weight is the float32 sum, rounded; a sum in bfloat16 would be rounded twice."""
    recipe = recipe_of(bases, "Llama, LoRA", dtype="bfloat16")
    model = trained(recipe, tmp_path / "adapter")
    layer = model.base_model.model.model.layers[1].mlp.down_proj
    expected = (layer.base_layer.weight.float() + layer.get_delta_weight("default").float()).bfloat16()
    whole = merging.merged(recipe, load_tokenizer(recipe), tmp_path / "adapter", "trained")
    assert torch.equal(whole.model.model.layers[1].mlp.down_proj.weight, expected)
    assert {parameter.dtype for parameter in whole.model.parameters()} == {torch.bfloat16}


def test_only_one_layer_at_a_time_is_in_float32(bases, tmp_path, monkeypatch):
    """What keeps the memory of a merge at the size of the model in its own type."""
    recipe = recipe_of(bases, "Llama, LoRA", dtype="bfloat16")
    trained(recipe, tmp_path / "adapter")
    whole, seen = [], []
    load = merging.load_base
    monkeypatch.setattr(merging, "load_base", lambda *args, **options: whole.append(load(*args, **options)) or whole[0])
    merge = merging._merge_in_float32

    def watched(layer):
        kept = layer.merge
        base = {name for name, p in whole[0].named_parameters() if "lora" not in name}
        layer.merge = lambda **options: (
            seen.append([n for n, p in whole[0].named_parameters() if n in base and p.dtype == torch.float32]),
            kept(**options),
        )
        return merge(layer)

    monkeypatch.setattr(merging, "_merge_in_float32", watched)
    merging.merged(recipe, load_tokenizer(recipe), tmp_path / "adapter", "trained")
    assert all(len(names) == 1 for names in seen[:6]) and not any(seen[6:])  # PEFT asks each again, merged by then


def test_the_layers_that_moved_are_measured(bases, tmp_path):
    recipe = recipe_of(bases, "Llama, LoRA")
    model = trained(recipe, tmp_path / "adapter")
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    expected = (layer.get_delta_weight("default").norm() / layer.base_layer.weight.norm()).item()
    whole = merging.merged(recipe, load_tokenizer(recipe), tmp_path / "adapter", "trained")
    moved = next(share for name, share in whole.moved.items() if "layers.0.self_attn.q_proj" in name)
    assert moved == pytest.approx(expected, rel=1e-4) and len(whole.moved) == 6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_full_fine_tune_is_deployed_in_its_dtype_and_stays_as_it_was(bases, dtype, tmp_path):
    recipe = Recipe(model=bases["Llama, tied"], data="none", dtype=dtype, max_kl=1e-2, max_new_tokens=8)
    model = load_base(Recipe(model=recipe.model, data="none", dtype="float32"), load_tokenizer(recipe))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.01)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = export.deploy(recipe, load_tokenizer(recipe), model, said(model, recipe), tmp_path / "merged", about(recipe))
    assert not found["faults"] and found["kl"] < (1e-8 if dtype == "float32" else 1e-2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert {str(t.dtype) for t in weights.values()} == {f"torch.{dtype}"} and "lm_head.weight" not in weights
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == dtype


def test_the_original_base_is_another_model_and_is_refused(bases, tmp_path):
    """Why the base matters: KL above the bound, the layers named, what was deployed before left alone."""
    recipe = recipe_of(bases, "Gemma 3, multimodal, QLoRA")
    model = trained(recipe, tmp_path / "adapter")
    deployed(recipe, model, tmp_path)
    before = (tmp_path / "merged" / "model.safetensors").read_bytes()
    found = deployed(recipe_of(bases, "Gemma 3, multimodal, QLoRA", base="original"), model, tmp_path)
    assert found["kl"] > 1e-3 and found["base"] == "original" and found["bases"]["original"]["kl"] == found["kl"]
    assert found["faults"][0].startswith(f"mean KL {found['kl']:.1e} per supervised token to the trained model, the bound is 1e-03")
    assert "the adapter moved most: model.language_model.layers." in found["faults"][0]
    told = r"merged: not proven to be the model that was trained: mean KL .*\n.*the adapter is kept in .*/adapter"
    with pytest.raises(RecipeError, match=told):
        export.refuse(found, tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "merged"]


@pytest.mark.parametrize("better", ["trained", "original"])
def test_measured_keeps_the_base_with_the_lower_loss(bases, better, tmp_path, monkeypatch):
    recipe = recipe_of(bases, "Llama, QLoRA", base="measured", max_kl=10.0)
    model = trained(recipe, tmp_path / "adapter")
    compare = proof.compare

    def cheaper(merged, record, folder):
        found = compare(merged, record)
        return {**found, "loss": found["loss"] - 10 * (better in merged.name)}

    monkeypatch.setattr(deployment, "prove", cheaper)
    found = deployed(recipe, model, tmp_path, rows=6)
    assert found["base"] == better and set(found["bases"]) == {"trained", "original"}
    assert found["bases"]["trained"]["kl"] < 1e-8 < 1e-4 < found["bases"]["original"]["kl"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "merged"]


def test_measured_never_keeps_a_base_over_the_bound(bases, tmp_path):
    recipe = recipe_of(bases, "Llama, QLoRA", base="measured")
    found = deployed(recipe, trained(recipe, tmp_path / "adapter"), tmp_path)
    assert found["base"] == "trained" and not found["faults"] and found["bases"]["original"]["kl"] > 1e-3


def test_a_full_fine_tune_that_fails_its_proof_is_kept_under_another_name(bases, tmp_path):
    recipe = Recipe(model=bases["Llama"], data="none", dtype="float32", max_new_tokens=8)
    model = load_base(recipe, load_tokenizer(recipe))
    record = said(model, recipe)
    record.logits = record.logits.flip(0)
    found = export.deploy(recipe, load_tokenizer(recipe), model, record, tmp_path / "merged", about(recipe))
    with pytest.raises(RecipeError, match=r"kept as .*merged\.refused"):
        export.refuse(found, tmp_path / "merged")
    assert [p.name for p in tmp_path.iterdir()] == ["merged.refused"]


# Faults planted into a folder that was right.


@pytest.fixture(scope="module")
def right(bases, tmp_path_factory):
    """A deployed folder in several shards, and the record it was proven with."""
    where = tmp_path_factory.mktemp("right")
    recipe = recipe_of(bases, "Llama tied, LoRA")
    model = trained(recipe, where / "adapter")
    record = said(model, recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "SHARD", "30KB")
        patch.setattr(deployment, "prove", lambda merged, said, _: proof.compare(merged, said))
        assert not export.deploy(recipe, load_tokenizer(recipe), where / "adapter", record, where / "merged", about(recipe))["faults"]
    return SimpleNamespace(folder=where / "merged", record=record, recipe=recipe)


@pytest.fixture
def copied(right, tmp_path):
    return shutil.copytree(right.folder, tmp_path / "merged")


def faults(copied, right):
    return "\n".join(proof.compare(copied, right.record)["faults"])


def edit_json(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_shard(copied, change):
    """Change the tensors of the shard that holds the last layer."""
    name = "model.layers.1.mlp.down_proj.weight"
    index = json.loads((copied / "model.safetensors.index.json").read_text())
    file = copied / index["weight_map"][name]
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    change(tensors, name)
    save_file(tensors, file, metadata=metadata)
    kept = {n: f for n, f in index["weight_map"].items() if f != file.name}
    edit_json(copied / "model.safetensors.index.json", weight_map={**kept, **dict.fromkeys(tensors, file.name)})


def test_the_folder_it_starts_from_has_several_shards_and_no_fault(right):
    assert len(list(right.folder.glob("*.safetensors"))) > 2 and proof.compare(right.folder, right.record)["faults"] == []


def test_a_template_edited_after_training(copied, right):
    file = copied / "chat_template.jinja"
    file.write_text(file.read_text().replace("<start_of_turn>", "<start_of_turn> "))
    said = faults(copied, right)
    assert "chat_template.jinja: not the one trained with" in said
    assert "apply_chat_template gives other ids than were trained on for 1 of 1 training prompts, first here:1" in said


def test_an_edited_response_template(copied, right):
    edit_json(copied / "tokenizer_config.json", response_template={"fields": {"content": {"content": "text"}}})
    assert "tokenizer_config.json: response_template: not the one" in faults(copied, right)


def test_a_missing_template(copied, right):
    (copied / "chat_template.jinja").unlink()
    assert "chat_template.jinja: missing" in faults(copied, right)


def test_a_stop_token_that_is_missing(copied, right):
    edit_json(copied / "generation_config.json", eos_token_id=[1])
    assert "eos_token_id [1] lacks '<end_of_turn>', at which turns end in training" in faults(copied, right)


def test_a_pad_token_among_the_stops(copied, right):
    edit_json(copied / "generation_config.json", eos_token_id=[1, STOP, 0])
    assert "eos_token_id [1, 5, 0] holds the pad token '<pad>'" in faults(copied, right)


def test_a_truncated_shard(copied, right):
    shard = sorted(copied.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    said = faults(copied, right)
    assert shard.name in said and "cut short" in said


def test_a_renamed_parameter(copied, right):
    edit_shard(copied, lambda tensors, name: tensors.update({"model.layers.1.mlp.down.weight": tensors.pop(name)}))
    said = faults(copied, right)
    assert "lacks tensors of the base: model.layers.1.mlp.down_proj.weight" in said
    assert "has tensors the base has not: model.layers.1.mlp.down.weight" in said


def test_a_parameter_of_another_shape(copied, right):
    edit_shard(copied, lambda tensors, name: tensors.update({name: tensors[name][:, :-1].contiguous()}))
    assert "has other shapes: model.layers.1.mlp.down_proj.weight (32, 47), not (32, 48)" in faults(copied, right)


def test_a_lost_tie(copied, right):
    edit_shard(copied, lambda tensors, name: tensors.update({"lm_head.weight": torch.randn(2048, 32)}))
    edit_json(copied / "config.json", tie_word_embeddings=False)
    said = faults(copied, right)
    assert "embedding and head are two sets of weights; in the trained model they are the same weights" in said


def test_a_changed_weight_shows_the_first_difference(copied, right):
    edit_shard(copied, lambda tensors, name: tensors.update({name: -tensors[name]}))
    found = proof.compare(copied, right.record)
    assert found["kl"] > 1e-3 and not found["generations_equal"]
    assert found["first_difference"]["trained"] != found["first_difference"]["deployed"]


def test_another_base_than_was_trained_on(bases, tmp_path):
    recipe = recipe_of(bases, "Llama, LoRA")
    model = trained(recipe, tmp_path / "adapter")
    other = tmp_path / "other"
    shutil.copytree(recipe.model, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeError, match=r"adapter was trained on .*Llama.*other"):
        deployed(recipe_of(bases, "Llama, LoRA", model=str(other)), model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "other"]


# What happens when it cannot be written.


def test_a_disk_that_fills_up_in_the_middle_leaves_nothing_and_keeps_what_was_there(bases, tmp_path, monkeypatch):
    recipe = recipe_of(bases, "Llama, LoRA")
    model = trained(recipe, tmp_path / "adapter")
    deployed(recipe, model, tmp_path)
    before = {p.name: p.read_bytes() for p in (tmp_path / "merged").iterdir()}
    monkeypatch.setattr(folder, "SHARD", "30KB")
    write, written = save_file, []

    def full(tensors, file, **options):
        if len(written) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(file)
        write(tensors, file, **options)

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(RecipeError, match=r"merged: it could not be written, nothing of it is left: .*No space left"):
        deployed(recipe, model, tmp_path)
    assert len(written) == 1 and {p.name: p.read_bytes() for p in (tmp_path / "merged").iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "merged"]


def test_room_on_the_disk_is_looked_for_before_the_first_byte(bases, tmp_path, monkeypatch):
    recipe = recipe_of(bases, "Llama, LoRA")
    model = trained(recipe, tmp_path / "adapter")
    record = said(model, recipe)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**6))
    monkeypatch.setattr(folder.PreTrainedModel, "save_pretrained", lambda *args, **options: pytest.fail("it wrote"))
    with pytest.raises(RecipeError, match=r"the merged model needs \d+ MB, the disk has 1 MB free; make room, then merge"):
        export.deploy(recipe, load_tokenizer(recipe), tmp_path / "adapter", record, tmp_path / "merged", about(recipe))
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_what_a_killed_merge_left_is_swept_away(bases, tmp_path):
    recipe = recipe_of(bases, "Llama, LoRA")
    model = trained(recipe, tmp_path / "adapter")
    (tmp_path / ".merged.trained.unfinished").mkdir()
    (tmp_path / ".merged.trained.unfinished" / "model.bin").write_text("half")
    deployed(recipe, model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "merged"] and not list((tmp_path / "merged").glob("*.bin"))


# What else is in the folder.


def test_the_proof_runs_in_a_fresh_process_and_cleans_up(right, tmp_path):
    found = proof.prove(right.folder, right.record, tmp_path / ".proof")
    assert not found["faults"] and found["kl"] < 1e-8 and not (tmp_path / ".proof").exists()


def test_a_proof_that_cannot_run_is_no_proof(right, tmp_path):
    found = proof.prove(tmp_path / "nothing", right.record, tmp_path / ".proof")
    assert list(found) == ["faults"] and found["faults"][0].startswith("the proof did not run: ")


def test_the_card_tells_what_it_is(right):
    text = (right.folder / "README.md").read_text()
    for words in (
        "library_name: transformers",
        "| exact (primary) | 0.0000 | 0.8750 |",
        "| train | 2 | 3 | 40 | `a1` |",
        "mean KL",
        "torch 2",
    ):
        assert words in text
    assert "````text\n0 ```\n````" in text and text.count("said") == 3
    assert json.loads((right.folder / "recipe.json").read_text())["recipe"] == "mine"


@pytest.mark.parametrize("stated", ["license: gemma", "license: other\nlicense_name: llama3.2\nlicense_link: LICENSE"])
def test_the_bases_licence_is_carried_on(bases, stated, tmp_path):
    recipe = recipe_of(bases, "Llama, LoRA", model=shutil.copytree(bases["Llama"], str(tmp_path / "base")))
    (tmp_path / "base" / "README.md").write_text(f"---\n{stated}\n---\nA model.\n")
    deployed(recipe, trained(recipe, tmp_path / "adapter"), tmp_path)
    text = (tmp_path / "merged" / "README.md").read_text()
    assert all(line in text for line in stated.split("\n"))
    assert f"Licence of the base: {'gemma' if 'gemma' in stated else 'llama3.2'}." in text


def test_a_processors_settings_are_copied_without_their_template(bases, tmp_path):
    recipe = recipe_of(bases, "Gemma 3, multimodal, LoRA", model=shutil.copytree(bases["gemma"], str(tmp_path / "base")))
    settings = {"processor_class": "Gemma3Processor", "image_seq_length": 1}
    (tmp_path / "base" / "processor_config.json").write_text(json.dumps({**settings, "chat_template": "another"}))
    deployed(recipe, trained(recipe, tmp_path / "adapter"), tmp_path)
    assert json.loads((tmp_path / "merged" / "processor_config.json").read_text()) == settings


def test_the_template_comes_back_byte_for_byte(right, tokenizer):
    assert AutoTokenizer.from_pretrained(right.folder).chat_template == tokenizer.chat_template


def test_divergence_by_hand():
    """KL((1/2, 1/2) || (1/4, 3/4)) = ln 2 - ln 3 / 2 = 0.1438 nats; the other token agrees."""
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    q = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    assert proof.divergence(p, q).tolist() == pytest.approx([0.143841, 0], abs=1e-6)


def test_a_stop_token_is_added_to_the_bases_own_and_the_pad_token_is_removed():
    assert folder.stopping(GenerationConfig(eos_token_id=[1, 0]), {5}, 0).eos_token_id == [1, 5]
    assert folder.stopping(None, {5}, None).eos_token_id == [5]
    assert folder.stopping(GenerationConfig(eos_token_id=1), {1}, 1).eos_token_id == [1]


def test_the_terminal_shows_the_numbers_of_both_bases(bases, tmp_path, capsys):
    recipe = recipe_of(bases, "Llama, QLoRA", base="measured")
    found = deployed(recipe, trained(recipe, tmp_path / "adapter"), tmp_path)
    screen.print_proof(found)
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("Merged into the trained base and reloaded in a fresh process: KL ") and "3 generations equal" in said
    original = found["bases"]["original"]
    assert said.endswith(
        f"Merged into the original base: KL {original['kl']:.1e}, at most {original['max_kl']:.1e}; held-out loss {original['loss']:.4f}."
    )
    screen.print_proof({**found, "bases": {"trained": found["bases"]["trained"]}})
    assert capsys.readouterr().out.startswith("The deployed folder, reloaded in a fresh process: KL ")


def test_what_was_typed_is_told_without_this_machines_folders(tmp_path):
    (tmp_path / "mine.jsonl").write_text("")
    assert card._options({"data": str(tmp_path / "mine.jsonl"), "start_from": "runs/a", "learning_rate": "1e-4"}) == (
        " --data mine.jsonl --from runs/a --learning_rate 1e-4"
    )
