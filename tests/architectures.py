"""Models of the installed transformers, small and without weights, and adapters of PEFT: what of theirs decays, by name."""

import copy

import peft
import torch
import transformers
from peft import LoraConfig

SMALL = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
HEAD = {**SMALL, "head_dim": 8}
MIXED = {**HEAD, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR = {**HEAD, "layer_types": ["linear_attention", "full_attention"]}
EXPERTS = dict(moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2)
PER_LAYER = {**MIXED, "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 64}
STATE = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2)
VISION = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
QK = {f"model.layers.*.self_attn.{side}_norm.weight" for side in "qk"}

# A class, its configuration, and by folded name everything of two dimensions and more that does not decay.
ARCHITECTURES = {
    "BambaForCausalLM": ({**SMALL, "attn_layer_indices": [1], "mamba_n_heads": 8}, ()),
    "BloomForCausalLM": (dict(vocab_size=64, hidden_size=32, n_layer=2, n_head=4), ()),
    "ChameleonForConditionalGeneration": (
        {**SMALL, "vocabulary_map": {"<image>": 1}},
        {*QK, *(name.replace("weight", "bias") for name in QK)},
    ),
    "Cohere2ForCausalLM": (SMALL, ()),
    "CohereForCausalLM": ({**SMALL, "use_qk_norm": True}, QK),
    "CpmAntForCausalLM": (
        dict(vocab_size=64, hidden_size=32, num_attention_heads=4, dim_head=8, dim_ff=48, num_hidden_layers=2),
        {"cpmant.position_bias.relative_attention_bias"},
    ),
    "DeepseekV3ForCausalLM": (
        {**SMALL, "num_key_value_heads": 4, "n_routed_experts": 8, "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 8},
        (),
    ),
    "DeepseekV4ForCausalLM": (  # hyper-connections map; what the compressor adds to its gate is a bias
        dict(num_hidden_layers=4, layer_types=["compressed_sparse_attention", "heavily_compressed_attention"] * 2),
        {f"model.layers.*.self_attn.compressor.{name}position_bias" for name in ("", "indexer.")},
    ),
    "Ernie4_5_MoeForCausalLM": (
        {**SMALL, "moe_num_experts": 4, "moe_intermediate_size": 16},
        {"model.layers.*.mlp.gate.moe_statics.e_score_correction_bias"},
    ),
    "FalconForCausalLM": (SMALL, ()),
    "FalconH1ForCausalLM": (SMALL, ()),
    "FalconMambaForCausalLM": ({**STATE, "state_size": 8}, {"backbone.layers.*.mixer.A_log"}),
    "GPT2LMHeadModel": (dict(vocab_size=64, n_embd=32, n_layer=2, n_head=4), ()),
    "Gemma2ForCausalLM": (HEAD, ()),
    "Gemma3ForCausalLM": (MIXED, ()),
    "Gemma3ForConditionalGeneration": (
        dict(text_config=HEAD, vision_config={**VISION, "image_size": 16, "patch_size": 8}, mm_tokens_per_image=1),
        {"model.vision_tower.head.probe"},
    ),
    "Gemma3nForCausalLM": (
        {**PER_LAYER, "laurel_rank": 4, "num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0] * 2, "intermediate_size": [48] * 2},
        (),
    ),
    "Gemma4ForCausalLM": (PER_LAYER, ()),
    "Gemma4ForConditionalGeneration": (
        dict(
            text_config=PER_LAYER,
            vision_config=VISION,
            audio_config=dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2),
        ),
        (),
    ),
    "Glm4ForCausalLM": ({**HEAD, "pad_token_id": 0}, ()),
    "Glm4MoeForCausalLM": ({**HEAD, "n_routed_experts": 4, "moe_intermediate_size": 16}, ()),
    "GptOssForCausalLM": (
        {**HEAD, "num_local_experts": 4},
        {f"model.layers.*.mlp.experts.{name}_proj_bias" for name in ("gate_up", "down")},
    ),
    "Inkling2ForCausalLM": (  # its embedding's class is called `NormedEmbedding`
        dict(num_hidden_layers=2, layer_types=["hybrid", "hybrid_sliding"]),
        {f"model.layers.*.self_attn.{name}_l2_clip.scale" for name in ("q", "rel")},
    ),
    "JambaForCausalLM": (
        {**SMALL, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4, "use_mamba_kernels": False},
        {"model.layers.*.mamba.A_log"},
    ),
    "KimiLinearForCausalLM": (dict(num_hidden_layers=4), {"model.layers.*.self_attn.forget_gate.A_log"}),
    "Lfm2ForCausalLM": ({**SMALL, "layer_types": ["conv", "full_attention"]}, ()),
    "Llama4ForCausalLM": ({**HEAD, "intermediate_size_mlp": 48, "num_local_experts": 2}, ()),
    "LlamaForCausalLM": (SMALL, ()),
    "Mamba2ForCausalLM": ({**STATE, "head_dim": 8, "num_heads": 8}, ()),
    "MambaForCausalLM": ({**STATE, "state_size": 8}, {"backbone.layers.*.mixer.A_log"}),
    "MiniMaxForCausalLM": ({**HEAD, "num_local_experts": 4}, ()),
    "MistralForCausalLM": (HEAD, ()),
    "MixtralForCausalLM": ({**SMALL, "num_local_experts": 4}, ()),
    "NemotronForCausalLM": (SMALL, ()),
    "NemotronHForCausalLM": ({**HEAD, "layers_block_type": ["mamba", "moe", "attention", "mlp"], "n_routed_experts": 4}, ()),
    "OPTForCausalLM": (
        dict(vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=16),
        (),
    ),
    "Olmo2ForCausalLM": (SMALL, ()),
    "Phi3ForCausalLM": ({**SMALL, "pad_token_id": 0}, ()),
    "PhiForCausalLM": ({**SMALL, "qk_layernorm": True}, ()),
    "Qwen2ForCausalLM": (SMALL, ()),
    "Qwen3ForCausalLM": (HEAD, ()),
    "Qwen3MoeForCausalLM": ({**HEAD, **EXPERTS}, ()),
    "Qwen3NextForCausalLM": ({**LINEAR, **EXPERTS}, ()),
    "Qwen3_5ForCausalLM": (LINEAR, ()),
    "Qwen3_5ForConditionalGeneration": (dict(text_config=LINEAR), ()),
    "Qwen3_5MoeForCausalLM": ({**LINEAR, **EXPERTS}, ()),
    "RecurrentGemmaForCausalLM": (
        {**HEAD, "lru_width": 32, "num_hidden_layers": 3},
        {f"model.layers.*.temporal_block.rg_lru.{name}_gate_bias" for name in ("input", "recurrent")},
    ),
    "RwkvForCausalLM": (
        {**STATE, "attention_hidden_size": 32},
        {
            *(f"rwkv.blocks.*.attention.time_mix_{name}" for name in ("key", "value", "receptance")),
            *(f"rwkv.blocks.*.feed_forward.time_mix_{name}" for name in ("key", "receptance")),
        },
    ),
    "SmolLM3ForCausalLM": ({**SMALL, "pad_token_id": 0}, ()),
    "T5ForConditionalGeneration": (  # the table of relative positions is added to attention scores: a bias, by name and by use
        dict(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4),
        {f"{side}.block.*.layer.*.SelfAttention.relative_attention_bias.weight" for side in ("encoder", "decoder")},
    ),
    "VoxtralRealtimeForConditionalGeneration": ({}, ()),  # linear layers in a norm that depends on time: they map
    "XLNetLMHeadModel": (
        dict(vocab_size=64, d_model=32, n_layer=2, n_head=4, d_inner=48),
        {"transformer.mask_emb", *(f"transformer.layer.*.rel_attn.r_{name}_bias" for name in "rsw")},
    ),
    "ZambaForCausalLM": (
        {**SMALL, "num_hidden_layers": 9},
        {f"model.layers.*.{place}mamba.{name}" for place in ("", "mamba_decoder.") for name in ("A_log", "D", "dt_proj_bias")},
    ),
}

LORA = dict(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
ATTENTION = "model.layers.*.self_attn.{}_proj.{}"
AB = {ATTENTION.format(side, f"lora_{matrix}.weight") for side in "qv" for matrix in "AB"}
NORMS = {f"model.{name}.modules_to_save.weight" for name in ("layers.*.input_layernorm", "norm")}
# An adapter, the folded names that decay, and those that do not.
ADAPTERS = {
    "LoRA": (LoraConfig(**LORA), AB, ()),
    "of rank 1": (LoraConfig(r=1, **LORA), AB, ()),
    "rsLoRA": (LoraConfig(use_rslora=True, **LORA), AB, ()),
    "DoRA": (LoraConfig(use_dora=True, **LORA), AB, {ATTENTION.format(side, "lora_magnitude_vector.weight") for side in "qv"}),
    "PiSSA": (LoraConfig(init_lora_weights="pissa", **LORA), AB, ()),
    "biases": (LoraConfig(lora_bias=True, **LORA), AB, {ATTENTION.format(side, "lora_B.bias") for side in "qv"}),
    "saved": (
        LoraConfig(modules_to_save=["lm_head", "norm", "input_layernorm"], **LORA),
        {*AB, "lm_head.modules_to_save.weight"},
        NORMS | {"model.layers.*.post_attention_layernorm.modules_to_save.weight"},  # PEFT matches the ends of names
    ),
    "tokens": (
        LoraConfig(trainable_token_indices=[1, 2], **LORA),
        AB,
        {"model.embed_tokens.token_adapter.trainable_tokens_delta"},
    ),
    "embeddings, of rank 1": (
        LoraConfig(r=1, target_modules=["embed_tokens"]),
        {f"model.embed_tokens.lora_embedding_{matrix}" for matrix in "AB"},
        (),
    ),
    "AdaLoRA": (
        peft.AdaLoraConfig(total_step=10, init_r=1, target_r=1, **LORA),
        {ATTENTION.format(side, f"lora_{matrix}") for side in "qv" for matrix in "AB"},
        {ATTENTION.format(side, "lora_E") for side in "qv"},
    ),
    "RandLoRA": (
        peft.RandLoraConfig(r=4, **LORA),
        (),
        {ATTENTION.format(side, f"randlora_{name}") for side in "qv" for name in ("lambda", "gamma")},
    ),
    "IA3": (
        peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
        (),
        {ATTENTION.format("q", "ia3_l")},
    ),
}


def without_weights(name, changes):
    architecture = getattr(transformers, name)
    with torch.device("meta"):
        return architecture._from_config(architecture.config_class(**copy.deepcopy(changes)))
