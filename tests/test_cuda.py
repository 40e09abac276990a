"""What only a CUDA device can show: the compiled kernels, on models of the widths that people train."""

import pytest
import torch
from test_packed_step import MODELS, separate, trees
from test_packed_step import short_beginnings_are_shared as short_beginnings_are_shared
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from benchmarks.gpu import exact
from benchmarks.gpu.device import here
from benchmarks.gpu.merging import proven
from benchmarks.gpu.models import GEMMA, adapted, recipe_of, write
from benchmarks.workloads import rows_of
from sft_recipes.attention import install
from sft_recipes.attention.sharing import prove
from sft_recipes.training.batches import collated
from sft_recipes.training.loss import supervised, token_losses
from sft_recipes.weights import load_model

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

SIZES = dict(vocab_size=2304, hidden_size=512, intermediate_size=1024, num_hidden_layers=2)
KINDS = ["sliding_attention", "full_attention"]


def wide_gemma():
    """Heads of 256, as Gemma 3's, and a window that bites."""
    heads = dict(num_attention_heads=8, num_key_value_heads=4, head_dim=256)
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, **heads, sliding_window=300, layer_types=KINDS))


def wide_llama():
    """24 heads of 128 that share 8, as Llama 3.2 3B's: not a power of two."""
    return LlamaForCausalLM(LlamaConfig(**SIZES | dict(hidden_size=3072), num_attention_heads=24, num_key_value_heads=8, head_dim=128))


WIDE = {"gemma3": wide_gemma, "llama": wide_llama}


@pytest.fixture(scope="module")
def rows():
    """Three answers to one question of some 600 tokens."""
    return rows_of("answers", 1)[0][:3]


def made(name, dtype=torch.float32):
    torch.manual_seed(0)
    model = WIDE[name]().to(here(), dtype)
    install(model)
    return model


@pytest.mark.parametrize("name", WIDE)
def test_a_tree_row_is_the_conversations_apart(name, rows):
    """Hidden states and the gradients of all weights, float32."""
    model = made(name)
    alone, tree = (exact.read(model, exact.batches(layout, rows, 0)) for layout in ("alone", "tree"))
    assert max(exact.apart(tree, alone)) <= 1e-4
    prove(model, 2048)


@pytest.mark.parametrize("name", WIDE)
def test_in_bf16_it_is_as_near_to_the_truth_as_trls_layouts(name, rows):
    truth = exact.read(made(name), exact.batches("alone", rows, 0))
    model = made(name, torch.bfloat16)
    off = {layout: exact.apart(exact.read(model, exact.batches(layout, rows, 0)), truth) for layout in exact.LAYOUTS}
    tree = off.pop("tree")
    assert all(found <= 1.1 * max(each[i] for each in off.values()) for i, found in enumerate(tree))


@pytest.mark.parametrize("name", WIDE)
def test_no_conversation_sees_another(name, rows):
    assert exact.leaked(made(name).eval(), rows, 0) == 0


@pytest.mark.parametrize("name", MODELS)
def test_the_small_models_read_trees_with_the_loss_and_gradients_of_separate_rows(name):
    """gpt-oss with its sinks among them."""
    model = MODELS[name]().to(here())
    install(model)
    apart = separate("answers")
    for number, row in enumerate(apart, 1):
        row["source"] = f"talks.jsonl:{number}"
    alone, tree = (exact.read(model, exact.batches(layout, apart, 0)) for layout in ("alone", "tree"))
    assert max(exact.apart(tree, alone)) <= 1e-4


def test_the_fused_head_scores_as_the_plain_one():
    from trl.trainer.utils import add_fused_lm_head

    model = MODELS["llama"]().to(here())
    install(model)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    model.get_output_embeddings().bias = None
    batch = {k: v.to(here()) if isinstance(v, torch.Tensor) else v for k, v in collated(None, trees(separate("agent"))).items()}
    plain, fused = (token_losses(model, model.get_output_embeddings(), batch, supervised(batch), fused=fused) for fused in (False, True))
    assert torch.allclose(plain.losses, fused.losses, atol=1e-4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return recipe_of(write(GEMMA, "tiny", tmp_path_factory.mktemp("base")), "tiny", quantised=True)


def test_a_quantised_model_says_what_its_dequantised_weights_say(checkpoint, rows):
    model = load_model(checkpoint.model, checkpoint.dtype, checkpoint.quantization)
    assert exact.dequantised(model, rows, 0) <= 1e-3


def test_qlora_reads_trees_and_merges_into_the_model_that_was_trained(checkpoint, rows, tmp_path):
    model = adapted(checkpoint)
    install(model)
    prove(model, 2048)
    del model
    proof = proven(checkpoint, rows, tmp_path)
    assert not proof["faults"] and proof["kl"] <= 1e-5


def test_noise_has_the_papers_size(rows):
    assert exact.noise(made("gemma3"), rows, 0) == pytest.approx(1.0, abs=0.02)
