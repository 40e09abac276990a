"""A checkpoint is told from all others; an adapter knows its base, and PEFT alone loads it there."""

import json

import pytest
import torch
import transformers
from bases import dressed, write_base
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from sft_recipes import RecipeError
from sft_recipes.weights import adapter as adapter_of
from sft_recipes.weights import base_of, identity, load_base, load_model, load_tokenizer, refuse_another, save_adapter
from sft_recipes.weights.identity import FILE, layout

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")  # with weights that matter
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32")
FP4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_compute_dtype="float32")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("llama"), "qwen", False)


def saved(model, folder, dtype=torch.float32, **options):
    """Another copy of a base; its folder as text."""
    AutoModelForCausalLM.from_pretrained(model, dtype=dtype).save_pretrained(folder, **options)
    return str(folder)


def test_shards_do_not_change_what_a_checkpoint_is(llama, tmp_path):
    sharded = saved(llama, tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    whole, cut = identity(llama), identity(sharded)
    assert whole["sha256"] == cut["sha256"] and whole["tensors"] == cut["tensors"] == len(load_file(f"{llama}/model.safetensors"))
    assert whole["revision"] is None and whole["model"] == llama
    assert layout(llama) == layout(sharded) == {name: tuple(t.shape) for name, t in load_file(f"{llama}/model.safetensors").items()}


@pytest.mark.parametrize("which", ["float16", "one weight", "the last row", "a name", "a shape"])
def test_other_weights_are_another_checkpoint(which, llama, tmp_path):
    tensors = load_file(f"{llama}/model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    assert table.nbytes > 3 * 4096
    if which == "float16":
        tensors = {name: tensor.half() for name, tensor in tensors.items()}
    elif which == "one weight":
        tensors["model.norm.weight"][3] += 1e-3
    elif which == "the last row":  # a new token's, in a table that is otherwise the base's
        table[-1] += 1e-3
    elif which == "a name":
        tensors["other.weight"] = tensors.pop("model.norm.weight")
    else:
        tensors["model.embed_tokens.weight"] = table.reshape(-1, 16)
    save_file(tensors, tmp_path / "model.safetensors")
    assert identity(str(tmp_path))["sha256"] not in (None, identity(llama)["sha256"])


def test_a_file_that_is_cut_short_is_named_with_what_it_promises(llama, tmp_path):
    folder = tmp_path / "cut"
    saved(llama, folder, max_shard_size="20KB")
    shard = sorted(folder.glob("*.safetensors"))[0]
    size = shard.stat().st_size
    with shard.open("r+b") as opened:
        opened.truncate(size - 100)
    for asked in (identity, layout):
        with pytest.raises(RecipeError, match=rf"{shard.name}: cut short: its header promises {size:,} bytes, {size - 100:,} are there"):
            asked(str(folder))
    with shard.open("r+b") as opened:
        opened.truncate(20)
    with pytest.raises(RecipeError, match=r"its header promises [\d,]+ bytes, 20 are there"):
        identity(str(folder))
    shard.unlink()
    with pytest.raises(RecipeError, match=rf"index.json names {shard.name}, which is not there"):
        identity(str(folder))


def test_without_a_checkpoint_there_is_no_hash(llama, tmp_path):
    nothing = {"revision": None, "sha256": None, "tensors": 0}
    assert base_of(dressed(llama, from_scratch=True)) == {"model": llama, **nothing}
    for model in (str(tmp_path), "/no/such/folder", "nobody/nothing"):
        assert identity(model) == {"model": model, **nothing} and layout(model) == {}


def test_of_the_hubs_cache_the_commit_is_kept_and_nothing_is_fetched(llama, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "models--someone--small"
    (folder / "refs").mkdir(parents=True)
    for name in ("main", "v1"):
        (folder / "refs" / name).write_text(commit)
    saved(llama, folder / "snapshots" / commit, max_shard_size="20KB")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    for revision in (None, "v1", commit):
        found = identity("someone/small", revision)
        assert found["revision"] == commit and found["sha256"] == identity(llama)["sha256"]
    assert identity("someone/small", "v2") == {"model": "someone/small", "revision": "v2", "sha256": None, "tensors": 0}


def adapted(model, folder, **fields):
    """A recipe on a base, the base with an adapter that matters, and the adapter's folder, saved."""
    recipe = dressed(model, **{"adapter": LORA, **fields})
    torch.manual_seed(1)
    tokenizer = load_tokenizer(recipe)
    base = load_base(recipe, tokenizer)
    wrapped = get_peft_model(base, adapter_of(recipe, tokenizer, base))
    return recipe, wrapped.eval(), save_adapter(wrapped, tokenizer, recipe, folder / "adapter")


def test_an_adapter_on_another_base_is_refused(llama, tmp_path):
    recipe, _, adapter = adapted(llama, tmp_path)
    refuse_another(adapter, recipe)
    refuse_another(adapter, dressed(saved(llama, tmp_path / "moved", max_shard_size="20KB")))
    other = saved(llama, tmp_path / "other", torch.bfloat16)
    with pytest.raises(
        RecipeError, match=rf"was trained on '{llama}'; '{other}' has other weights; name its own base with --model {llama}"
    ):
        refuse_another(adapter, dressed(other))
    refuse_another(tmp_path, dressed(other))  # an adapter of others, which does not say


def test_weights_that_changed_under_the_same_name_are_refused(llama, tmp_path):
    model = saved(llama, tmp_path / "base")
    AutoTokenizer.from_pretrained(llama).save_pretrained(model)
    recipe, _, adapter = adapted(model, tmp_path)
    saved(llama, tmp_path / "base", torch.bfloat16)
    with pytest.raises(RecipeError, match="has other weights by now; name a copy of what it was with --model"):
        refuse_another(adapter, recipe)


def test_a_base_quantised_otherwise_is_refused(llama, tmp_path):
    recipe, _, adapter = adapted(llama, tmp_path, quantization=NF4)
    refuse_another(adapter, recipe)
    for quantization, here in ((None, "none"), (FP4, "bnb_4bit_quant_type fp4")):
        with pytest.raises(RecipeError, match=f"was trained with quantization: .*bnb_4bit_quant_type nf4.*; here: {here}. Give the recipe"):
            refuse_another(adapter, dressed(llama, quantization=quantization))
    said = json.loads((adapter / FILE).read_text())
    (adapter / FILE).write_text(json.dumps({**said, "quantization": {**said["quantization"], "of_another_version": True}}))
    refuse_another(adapter, recipe)


def test_what_an_adapter_says_of_its_base(llama, tmp_path):
    recipe, _, adapter = adapted(llama, tmp_path, quantization=NF4)
    said = json.loads((adapter / FILE).read_text())
    assert {key: said[key] for key in ("model", "revision", "sha256", "tensors")} == identity(llama)
    assert said["dtype"] == "float32" and said["quantization"]["bnb_4bit_quant_type"] == "nf4"
    own = json.loads((adapter / "adapter_config.json").read_text())
    assert own["base_model_name_or_path"] == llama and own["revision"] is None
    assert AutoTokenizer.from_pretrained(adapter).chat_template == load_tokenizer(recipe).chat_template
    assert not list(tmp_path.glob(".*unfinished"))


@pytest.mark.parametrize("which", ["llama", "gemma"])
def test_peft_alone_loads_the_adapter_on_the_original_base(which, llama, small_base, tmp_path):
    model, template = (llama, "chatml") if which == "llama" else (small_base, None)
    lora = LoraConfig(**{**LORA.to_dict(), "target_modules": r".*(layers|language_model).*\.(q_proj|v_proj)"})
    _, trained, adapter = adapted(model, tmp_path, adapter=lora, chat_template=template)
    ids = torch.tensor([[5, 60, 70, 80, 90]])
    base = getattr(transformers, transformers.AutoConfig.from_pretrained(model).architectures[0])
    with torch.no_grad():
        wanted = trained(input_ids=ids).logits
        for loaded in (
            PeftModel.from_pretrained(base.from_pretrained(model, dtype=torch.float32), adapter),
            AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32),
        ):
            assert torch.equal(wanted, loaded.eval()(input_ids=ids).logits)
        assert not torch.equal(wanted, load_model(model, "float32")(input_ids=ids).logits)


def test_peft_alone_loads_the_rows_of_new_tokens_too(tmp_path_factory, tmp_path):
    """The tokenizer beside the adapter tells PEFT how many rows the base needs."""
    model = write_base(tmp_path_factory.mktemp("bare"), "bare", False)
    _, trained, adapter = adapted(model, tmp_path)
    new = trained.peft_config["default"].trainable_token_indices["lm_head"]
    with torch.no_grad():
        loaded = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32).eval()
        logits = [some(input_ids=torch.tensor([[5, 60, *new]])).logits for some in (trained, loaded)]
    assert new == [301, 302] and torch.equal(*logits)
