"""Decay groups: on the architectures of transformers, on PEFT's adapters, in one step, and in `check`'s table."""

import json
import time

import peft
import pytest
import torch
import transformers
from architectures import ADAPTERS, ARCHITECTURES, LORA, SMALL, without_weights
from peft import LoraConfig, PromptTuningConfig
from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers import Trainer
from transformers.pytorch_utils import Conv1D

from sft_recipes import Recipe, RecipeError, build_trainer, preflight, screen
from sft_recipes.config import resolve
from sft_recipes.optim.groups import account, decays, folded, parameter_groups
from sft_recipes.preflight import tables
from sft_recipes.weights.skeleton import adapted

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


def grouped_once(model, groups):
    """Every trained parameter is in exactly one group, tied ones too; no group is empty."""
    placed = [id(parameter) for group in groups for parameter in group["params"]]
    assert all(group["params"] for group in groups)
    return len(placed) == len(set(placed)) and set(placed) == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_decay_is_on_matrices_alone(name):
    changes, vectors = ARCHITECTURES[name]
    model = without_weights(name, changes)
    found, parameters = decays(model), dict(model.named_parameters())
    assert not [n for n, p in parameters.items() if p.dim() < 2 and n in found]
    assert {folded(n) for n, p in parameters.items() if p.dim() > 1 and n not in found} == set(vectors)
    mapping = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Embedding, _ConvNd, Conv1D))]
    weights = [f"{n}.weight" for n in mapping if f"{n}.weight" in parameters]
    assert weights and {folded(n) for n in weights if n not in found} <= {n for n in vectors if "bias" in n}
    groups = parameter_groups(model, 0.1)
    assert grouped_once(model, groups) and [group["weight_decay"] for group in groups] == [0.1, 0.0][: len(groups)]
    assert {id(p) for p in groups[0]["params"]} == {id(parameters[n]) for n in found if parameters[n].requires_grad}


class Scale(nn.Module):
    """Scales of each head, as a norm keeps them."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 4))


def test_a_norm_is_known_by_its_class_and_by_its_name():
    model = nn.ModuleDict({"q_norm": Scale(), "first": type("HeadRMSNorm", (Scale,), {})(), "router": Scale(), "norm": nn.Linear(2, 4)})
    model.register_parameter("norm_weights", nn.Parameter(torch.ones(2, 4)))
    assert decays(model) == {"router.weight", "norm.weight"}


def test_upstream_still_needs_ours():
    """The border: transformers' own patterns decay some vectors, and spare one matrix in a norm. If this fails, look again."""
    wrong = {
        "Qwen3_5ForCausalLM": {"model.layers.*.linear_attn.A_log"},
        "GptOssForCausalLM": {"model.layers.*.self_attn.sinks"},
        "NemotronHForCausalLM": {"model.layers.*.mixer.A_log", "model.layers.*.mixer.D", "model.norm_f.weight"},
        "RwkvForCausalLM": {"rwkv.blocks.*.attention.time_decay"},
    }
    for name, vectors in wrong.items():
        model = without_weights(name, ARCHITECTURES[name][0])
        theirs = {folded(n) for n in Trainer.get_decay_parameter_names(None, model)}
        mended = vectors - theirs
        assert not mended, f"transformers {transformers.__version__} no longer decays {mended} of {name}: is ours still needed?"
    spared = without_weights("VoxtralRealtimeForConditionalGeneration", {})
    left = {folded(n) for n in decays(spared) - set(Trainer.get_decay_parameter_names(None, spared))}
    assert any("ada_rms_norm.linear" in n for n in left), "transformers now decays the linear layers of adaptive norms"


def llama(adapter, **changes):
    """Two layers of Llama without weights, with an adapter; head and embedding are tied."""
    model = without_weights("LlamaForCausalLM", {**SMALL, "tie_word_embeddings": True, **changes})
    return adapted(model, Recipe(model="small", data="d", adapter=adapter))


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_decay_as_what_they_are(name):
    adapter, matrices, vectors = ADAPTERS[name]
    before = adapter.to_dict()
    model = llama(adapter, attention_bias=name == "biases")  # PEFT merges a bias only into one that is there
    assert adapter.to_dict() == before and {p.device.type for p in model.parameters()} == {"meta"}
    groups = parameter_groups(model, 0.1)
    assert grouped_once(model, groups)
    found = {group["weight_decay"]: set(group["names"]) for group in account(model, groups, 1.0)}
    assert found.get(0.1, set()) == set(matrices) and found.get(0.0, set()) == set(vectors)


def test_what_is_saved_whole_is_judged_by_its_own_name():
    adapter = LoraConfig(target_modules=["q"], modules_to_save=["relative_attention_bias"])
    base = without_weights("T5ForConditionalGeneration", ARCHITECTURES["T5ForConditionalGeneration"][0])
    model = adapted(base, Recipe(model="m", data="d", adapter=adapter))
    assert set(account(model, parameter_groups(model, 0.1), 1.0)[1]["names"]) == {
        f"{side}.block.*.layer.*.SelfAttention.relative_attention_bias.modules_to_save.weight" for side in ("encoder", "decoder")
    }


def test_experts_have_adapters_too():
    adapter = LoraConfig(target_modules=[], target_parameters=["experts.down_proj"])
    base = without_weights("GptOssForCausalLM", ARCHITECTURES["GptOssForCausalLM"][0])
    model = adapted(base, Recipe(model="m", data="d", adapter=adapter))
    (group,) = account(model, parameter_groups(model, 0.1), 1.0)
    assert group["names"] == {f"model.layers.*.mlp.experts.lora_{matrix}.weight": 2 for matrix in "AB"}


@pytest.fixture
def learner(small_gemma):
    """A small Gemma 3 with LoRA in both towers, norms, biases and the rows of two tokens, all trained, none zero."""
    adapter = LoraConfig(r=2, target_modules=["q_proj", "fc1"], modules_to_save=["norm"], trainable_token_indices=[3, 5], lora_bias=True)
    model = peft.get_peft_model(small_gemma, adapter)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("ratio", [None, 16.0])
def test_a_step_without_gradient_shrinks_the_matrices_alone_and_by_the_declared_share(learner, ratio):
    rate, decay = 1e-2, 0.25
    before = {name: p.detach().clone() for name, p in learner.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameter_groups(learner, decay, rate, ratio), lr=rate, betas=(0.9, 0.95))
    for parameter in learner.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    shrunken = {True: 0, False: 0}
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            matrix = "lora_" in name and "bias" not in name
            faster = ratio if ratio and "lora_B" in name else 1.0
            assert torch.equal(parameter, before[name] * (1 - rate * faster * decay) if matrix else before[name]), name
            shrunken[matrix] += 1
    assert all(shrunken.values())


def test_without_decay_there_is_one_group(learner):
    (group,) = parameter_groups(learner, 0.0)
    assert group["weight_decay"] == 0 and grouped_once(learner, [group])


def test_lora_plus_speeds_up_b_and_keeps_the_decay():
    model = llama(LoraConfig(target_modules=["q_proj", "embed_tokens"], use_dora=True, lora_bias=False))
    groups = parameter_groups(model, 0.1, 1e-4, 16)
    assert grouped_once(model, groups) and parameter_groups(model, 0.1, 1e-4) == parameter_groups(model, 0.1)
    rows = account(model, groups, 1e-4)
    assert [(row["weight_decay"], row["learning_rate_multiple"]) for row in rows] == [(0.1, 1), (0.0, 1), (0.1, 16)]
    assert set(rows[2]["names"]) == {"model.layers.*.self_attn.q_proj.lora_B.weight", "model.embed_tokens.lora_embedding_B"}
    assert {group["lr"] for group in groups} == {1e-4, 16e-4}


def test_lora_plus_that_can_do_nothing_is_refused():
    with pytest.raises(ValueError, match="loraplus_lr_ratio: no B of a LoRA is trained"):
        parameter_groups(llama(None), 0.1, 1e-4, 16)
    with pytest.raises(ValueError, match="loraplus_lr_ratio: no learning rate"):
        parameter_groups(llama(LoraConfig(**LORA)), 0.1, None, 16)


def test_groups_are_the_same_each_time_and_survive_a_checkpoint(learner):
    def optimizer():
        return torch.optim.AdamW(parameter_groups(learner, 0.1, 1e-4, 16), lr=1e-4)

    first, again = optimizer(), optimizer()
    for parameter in learner.parameters():
        parameter.grad = torch.ones_like(parameter)
    first.step()
    again.load_state_dict(first.state_dict())
    for one, other in zip(first.param_groups, again.param_groups, strict=True):
        assert [id(p) for p in one.pop("params")] == [id(p) for p in other.pop("params")] and one == other


def test_a_matrix_that_deepspeed_has_taken_away_still_decays(small_gemma):
    """Its third stage leaves a vector of no elements and the shape beside it."""
    expected = decays(small_gemma)
    for parameter in small_gemma.parameters():
        parameter.ds_shape, parameter.data = parameter.shape, torch.empty(0)
    assert decays(small_gemma) == expected


def test_each_mesh_of_devices_has_groups_of_its_own(learner):
    parameters = [p for p in learner.parameters() if p.requires_grad]
    for parameter in parameters[::2]:
        parameter.device_mesh = "experts"
    groups = parameter_groups(learner, 0.1)
    assert grouped_once(learner, groups) and [group["weight_decay"] for group in groups] == [0.1, 0.1, 0.0, 0.0]
    assert all(len({getattr(p, "device_mesh", None) for p in group["params"]}) == 1 for group in groups)


def test_what_fsdp_1_has_flattened_is_refused():
    hidden = type("FullyShardedDataParallel", (nn.Module,), {})()
    with pytest.raises(ValueError, match="set `fsdp_version: 2`"):
        decays(nn.Sequential(hidden))


def test_names_are_folded():
    assert folded("base_model.model.model.layers.11.mlp.up_proj.lora_A.default.weight") == "model.layers.*.mlp.up_proj.lora_A.weight"
    assert folded("model.layers.0.mlp.experts.7.w1.weight") == "model.layers.*.mlp.experts.*.w1.weight"
    assert folded("layer0.conv1d.embedding.default") == "layer0.conv1d.embedding"


# `check`


def resolved(small_base, **changes):
    return resolve("gemma-tools", scale="tiny", model=small_base, **changes)


def test_the_table_is_that_of_the_real_trainer(small_base, chats, tmp_path):
    small = dict(train_dataset=chats(12), held_out=3, output_dir=str(tmp_path), report_to="none", loraplus_lr_ratio=16.0)
    trainer = build_trainer("gemma-tools", scale="tiny", model=small_base, **small)
    real = account(trainer.model, trainer.create_optimizer().param_groups, trainer.args.learning_rate)
    report = preflight.check(trainer.resolved, chats(12))
    assert not report.faults and report.counts["optimizer"] == real
    assert [(row["learning_rate_multiple"], row["tensors"]) for row in real] == [(1, 14), (16, 14)]
    assert json.loads(json.dumps(report.as_dict()))["counts"]["optimizer"] == real


def test_an_adapter_that_fits_nothing_is_a_line_among_the_others(small_base, jsonl):
    wrong = resolved(small_base, adapter=LoraConfig(target_modules=["q_prj"]), data=jsonl(["{"]))
    first, second = preflight.check(wrong).faults
    assert first.startswith("adapter: Target modules {'q_prj'} not found in the base model, did you mean 'q_proj'? Linear layers of")
    assert "v_proj" in first and "data.jsonl:1: not JSON" in second
    for adapter in (LoraConfig(target_modules=".*nothing"), LoraConfig(target_modules=["q_proj"], modules_to_save=["q_proj"])):
        with pytest.raises(RecipeError, match=r"adapter: "):
            adapted(without_weights("LlamaForCausalLM", SMALL), Recipe(model="m", data="d", adapter=adapter))


def test_lora_plus_without_a_b_is_a_line(small_base, chats):
    nothing = resolved(small_base, adapter=peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]), loraplus_lr_ratio=16.0)
    assert preflight.check(nothing, chats(12)).faults == ["loraplus_lr_ratio: no B of a LoRA is trained"]


def test_an_adapter_that_needs_the_weights_has_no_table_and_no_fault(small_base, chats):
    """BOFT reads values while it is made."""
    adapter = peft.BOFTConfig(boft_block_size=4, target_modules=["q_proj"])
    report = preflight.check(resolved(small_base, adapter=adapter, loraplus_lr_ratio=None), chats(12), chats(3, 50))
    assert not report.faults and "optimizer" not in report.counts
    assert any(warning.startswith("what is trained can be listed only with the weights (RuntimeError: ") for warning in report.warnings)


def test_the_table_is_quick_for_gemma_3_4b():
    """Its real shape: 4.3 billion parameters, 476 trained tensors. On a free machine 0.4 s."""
    text = dict(hidden_size=2560, intermediate_size=10240, num_hidden_layers=34, num_attention_heads=8, num_key_value_heads=4, head_dim=256)
    vision = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, image_size=896, patch_size=14)
    recipe = resolve("gemma-tools", scale="full").recipe
    started = time.perf_counter()
    model = without_weights("Gemma3ForConditionalGeneration", dict(text_config=text, vision_config=vision))
    model = adapted(model, recipe)
    (group,) = account(model, parameter_groups(model, 0.1), 1.0)
    assert time.perf_counter() - started < 4
    assert (group["tensors"], group["parameters"], set(group["names"].values())) == (476, 29_802_496, {34})


def printed(rows):
    with screen.out.capture() as captured:
        screen.out.width = 80
        screen.out.print(tables.groups(rows))
    return [line.rstrip() for line in captured.get().splitlines()]


def test_the_table_is_readable_at_eighty_columns():
    model = llama(LoraConfig(target_modules="all-linear", modules_to_save=["model.norm"]))
    assert printed(account(model, parameter_groups(model, 0.1, 1e-4, 16), 1e-4)) == [
        "optimizer            tensors  parameters  of",
        "decay 0.1                 14       3,840  lora_A of q_proj, k_proj, v_proj,",
        "                                          o_proj, gate_proj, up_proj, down_proj",
        "no decay                   1          32  modules_to_save of norm",
        "decay 0.1, rate x16       14       3,584  lora_B of q_proj, k_proj, v_proj,",
        "                                          o_proj, gate_proj, up_proj, down_proj",
    ]
    model = without_weights("GptOssForCausalLM", ARCHITECTURES["GptOssForCausalLM"][0])
    assert printed(account(model, parameter_groups(model, 0.1), 1.0)) == [
        "optimizer  tensors  parameters  of",
        "decay 0.1       16      47,360  embed_tokens, q_proj, k_proj, v_proj, o_proj,",
        "                                router, lm_head; gate_up_proj, down_proj of",
        "                                experts",
        "no decay        21       1,392  input_layernorm, post_attention_layernorm, norm;",
        "                                sinks of self_attn; bias of q_proj, k_proj,",
        "                                v_proj, o_proj, router; gate_up_proj_bias,",
        "                                down_proj_bias of experts",
    ]


def test_what_could_not_be_merged_is_refused_before_it_is_trained():
    """PEFT finds out when it merges, after training; both of its ways are held here."""
    with pytest.raises(RecipeError, match=r"adapter: `lora_bias=True` .* has no bias, so it could not be merged after training"):
        llama(LoraConfig(lora_bias=True, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(RecipeError, match="adapter: PEFT cannot merge a PromptTuningConfig into its base"):
        llama(PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"))
