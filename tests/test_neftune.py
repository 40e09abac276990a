"""Promise 6: the noise has the size its paper gives, for each document alone, whatever the packing and the architecture."""

import math

import pytest
import torch
from conftest import make_small_gemma
from peft import LoraConfig, get_peft_model
from transformers import Gemma4ForCausalLM, Gemma4TextConfig, LlamaConfig, LlamaForCausalLM
from transformers.integrations.neftune import activate_neftune

from sft_recipes.optim.neftune import Neftune, document_lengths, embedding_scale
from sft_recipes.recipe import RecipeError

ALPHA, WIDTH = 5.0, 32


def make_small_llama():
    """As wide as the small Gemma, and with its table."""
    size = dict(hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=2048, **size))
    llama.get_input_embeddings().weight.data = make_small_gemma().get_input_embeddings().weight.detach().clone()
    return llama


MODELS = {"gemma": make_small_gemma, "llama": make_small_llama}
SCALE = {"gemma": math.sqrt(WIDTH), "llama": 1.0}


@pytest.fixture(scope="module", autouse=True)
def one_thread(threads):
    """Two are slower on models this small, much so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=MODELS)
def kind(request):
    return request.param


def ids(*shape):
    return torch.randint(10, 2000, shape, generator=torch.Generator().manual_seed(0))


def layout(name):
    """One batch, and the tokens of the document of each position, written by hand."""
    reset = torch.cat([torch.arange(n) for n in (4, 8, 16)])[None]
    sizes = torch.cat([torch.full((n,), n) for n in (4, 8, 16)])[None]
    first, last = torch.arange(24)[None] < torch.tensor([[24], [6]]), torch.arange(24)[None] >= torch.tensor([[0], [18]])
    long_and_short = torch.tensor([[24], [6]])
    padded, no = torch.nn.functional.pad, torch.zeros(1, 4, dtype=torch.long)
    return {
        "alone": (dict(input_ids=ids(1, 24)), torch.full((1, 24), 24)),
        "padded right": (dict(input_ids=ids(2, 24), attention_mask=first.long()), long_and_short * first),
        "padded left": (dict(input_ids=ids(2, 24), attention_mask=last.long()), long_and_short * last),
        "packed": (dict(input_ids=ids(1, 28), position_ids=reset), sizes),
        "packed and padded": (
            dict(input_ids=ids(1, 32), position_ids=torch.cat([reset, no], 1), attention_mask=padded(torch.ones_like(reset), (0, 4))),
            padded(sizes, (0, 4)),
        ),
    }[name]


LAYOUTS = ("alone", "padded right", "padded left", "packed", "packed and padded")


def embedded(model, inputs):
    """What the first decoder layer gets, shape `(batch, length, width)`."""
    layer = next(module for module in model.modules() if type(module).__name__.endswith("DecoderLayer"))
    seen = []
    handle = layer.register_forward_pre_hook(lambda _, args, kwargs: seen.append(args[0]), with_kwargs=True)
    model(**inputs, use_cache=False)
    handle.remove()
    return seen[0].detach().clone()


def noise(model, neftune, inputs, draws=1):
    """Noise that reaches the first layer, shape `(draws, batch, length, width)`."""
    clean, found = embedded(model, inputs), []
    for _ in range(draws):
        with neftune.during(inputs):
            found.append(embedded(model, inputs) - clean)
    assert torch.equal(embedded(model, inputs), clean)
    return torch.stack(found)


def assert_declared(found, lengths, scale, alpha=ALPHA):
    """Uniform in +-alpha * scale / sqrt(length * width) for each length: its bound, spread and mean; nothing at padding."""
    assert not found[:, lengths == 0].any()
    for length in set(lengths[lengths > 0].tolist()):
        bound = alpha * scale / math.sqrt(length * WIDTH)
        drawn = found[:, lengths == length]
        assert 0.99 * bound < drawn.abs().max() < 1.0001 * bound
        assert drawn.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
        assert abs(drawn.mean()) < 0.01 * bound


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_document_has_the_declared_noise(kind, name):
    model, (inputs, lengths) = MODELS[kind]().train(), layout(name)
    assert torch.equal(document_lengths(inputs), lengths)
    draws = 600 if "packed" in name else 200  # 0.447 / sqrt(numbers) is the relative error of the spread: at most a quarter of 1%
    table, clean = model.get_input_embeddings(), embedded(model, inputs)
    found, neftune = [], Neftune(model, ALPHA)
    for _ in range(draws):
        with neftune.during(inputs):
            found.append(table(inputs["input_ids"]).detach() - clean)
    assert_declared(torch.stack(found), lengths, SCALE[kind])
    assert_reaches_the_model(model, neftune, inputs, lengths, SCALE[kind])


def assert_reaches_the_model(model, neftune, inputs, lengths, scale):
    found = noise(model, neftune, inputs)[0]
    bounds = ALPHA * scale / (lengths.clamp(min=1) * WIDTH).sqrt() * (lengths > 0)
    assert (found.abs().amax(-1) <= 1.0001 * bounds).all()
    assert (found.abs().amax(-1) >= 0.5 * bounds).all()


def test_it_is_the_same_share_of_the_embedding_in_gemma_and_llama():
    inputs, _ = layout("alone")
    shares = []
    for make in MODELS.values():
        model = make().train()
        torch.manual_seed(1)
        shares.append(noise(model, Neftune(model, ALPHA), inputs).std() / embedded(model, inputs).std())
    torch.testing.assert_close(*shares, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["right", "left"])
@pytest.mark.parametrize("counted", [False, True], ids=["clamped", "counted through"])
def test_lengths_of_padded_rows_with_positions(name, counted):
    """Whether padding in front has positions of its own, as a plain count has, or 1, as transformers' generation has."""
    inputs, lengths = layout(f"padded {name}")
    mask = inputs["attention_mask"]
    positions = torch.arange(24).expand(2, 24) if counted else (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
    assert torch.equal(document_lengths({**inputs, "position_ids": positions}), lengths)
    assert torch.equal(document_lengths({**inputs, "position_ids": positions.expand(3, 2, 24)}), lengths)


def test_lengths_of_what_trl_packs():
    """The border: without a mask, positions begin anew with each document, and padding is filled up with position 0."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True, pad_to_multiple_of=8)
    batch = collate([{"input_ids": [5, 6, 7, 8, 9], "seq_lengths": [3, 2]}])
    assert "attention_mask" not in batch
    assert document_lengths(batch).tolist() == [[3, 3, 3, 2, 2, 0, 0, 0]]
    assert document_lengths({**batch, "input_ids": batch["input_ids"].repeat(2, 1)}).tolist() == [[3, 3, 3, 2, 2, 0, 0, 0]] * 2
    batch = DataCollatorForLanguageModeling(pad_token_id=0)([{"input_ids": [5, 6, 7]}, {"input_ids": [8]}])
    assert document_lengths(batch).tolist() == [[3, 3, 3], [1, 0, 0]]


def test_a_mask_that_does_not_tell_documents_is_refused_unless_lengths_are_given():
    model = make_small_llama().train()
    neftune, inputs = Neftune(model, ALPHA), dict(input_ids=ids(1, 6), attention_mask={"full_attention": torch.ones(1, 1, 6, 6)})
    with pytest.raises(RecipeError, match="`lengths`"), neftune.during(inputs):
        pass
    with neftune.during(inputs, lengths=torch.full((1, 6), 3)):
        model(input_ids=inputs["input_ids"])


def test_none_outside_the_block_in_evaluation_or_for_no_alpha(kind):
    model, (inputs, _) = MODELS[kind]().train(), layout("alone")
    for alpha in (None, 0, 0.0):
        assert not noise(model, Neftune(model, alpha), inputs).any()
    neftune = Neftune(model, ALPHA)
    assert noise(model, neftune, inputs).any()
    assert not noise(model.eval(), neftune, inputs).any()


def test_an_interruption_leaves_no_hook(kind):
    model, (inputs, _) = MODELS[kind]().train(), layout("alone")
    with pytest.raises(KeyboardInterrupt), Neftune(model, ALPHA).during(inputs):
        assert model.get_input_embeddings()._forward_hooks
        raise KeyboardInterrupt
    assert not model.get_input_embeddings()._forward_hooks


def test_a_second_one_adds_nothing(kind):
    model, (inputs, _) = MODELS[kind]().train(), layout("alone")
    torch.manual_seed(3)
    once = noise(model, Neftune(model, ALPHA), inputs)
    torch.manual_seed(3)
    with Neftune(model, ALPHA).during(inputs):
        inner = Neftune(model, ALPHA)
        with inner.during(inputs):
            twice = embedded(model, inputs)
        assert len(model.get_input_embeddings()._forward_hooks) == 1
    assert torch.equal(twice - embedded(model, inputs), once[0])


def test_beside_transformers_own_it_is_refused():
    model, (inputs, _) = make_small_llama().train(), layout("alone")
    activate_neftune(model, ALPHA)
    with pytest.raises(RecipeError, match="neftune_noise_alpha"), Neftune(model, ALPHA).during(inputs):
        pass


def test_a_pass_without_noise_is_an_error():
    model, (inputs, _) = make_small_llama().train(), layout("alone")
    with pytest.raises(RecipeError, match=r"no NEFTune noise .* \(1, 24\)"), Neftune(model, ALPHA).during(inputs):
        model(inputs_embeds=torch.zeros(1, 24, WIDTH))


def test_a_token_looked_up_by_itself_has_none():
    """As multimodal models look up their placeholders, to find them among embeddings."""
    model, (inputs, _) = make_small_gemma().train(), layout("alone")
    token, table = torch.tensor(8), model.get_input_embeddings()
    with Neftune(model, ALPHA).during(inputs):
        found = table(token)
        model(**inputs)
    assert torch.equal(found, table(token))


def test_the_state_of_torchs_generator_is_that_of_the_noise():
    model, (inputs, _) = make_small_gemma().train(), layout("alone")
    neftune, state = Neftune(model, ALPHA), torch.get_rng_state()
    first, second = (noise(model, neftune, inputs) for _ in range(2))
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(noise(model, Neftune(model, ALPHA), inputs), first)  # and probing draws nothing


ADAPTERS = {
    "lora": dict(target_modules=["q_proj"]),
    "trainable tokens": dict(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [0, 11, 12, 2050]}),
    "lora on the embedding": dict(target_modules=["q_proj", "embed_tokens"], init_lora_weights=False),
    "embedding saved whole": dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
}


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*", "ignore:.*target_modules.*tied.*")
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_with_adapters_and_a_resized_table(kind, adapter):
    model = MODELS[kind]()
    model.resize_token_embeddings(2060)
    model = get_peft_model(model, LoraConfig(r=4, **ADAPTERS[adapter])).train()
    inputs = dict(input_ids=torch.tensor([[0, 11, 12, 2050, 2051, 7]]).repeat(64, 6))
    neftune = Neftune(model, ALPHA)
    assert neftune.scale == pytest.approx(SCALE[kind], rel=1e-5)
    assert_declared(noise(model, neftune, inputs), document_lengths(inputs), SCALE[kind])
    assert not any(module._forward_hooks for module in model.modules())


def gradients(model, inputs, seed=0, within=lambda: None):
    torch.manual_seed(seed)
    with Neftune(model, ALPHA).during(inputs):
        within()
        loss = model(**inputs, labels=inputs["input_ids"], use_cache=False).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("last", [False, True], ids=["inputs require grad before", "inputs require grad after"])
def test_gradient_checkpointing_gives_the_same_gradients(kind, adapted, last):
    """Reentrant checkpointing needs inputs that require a gradient, which transformers ensures by a hook on the same layer."""
    model, (inputs, _) = MODELS[kind]().train(), layout("padded right")
    if adapted:
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)).train()
    plain, other = gradients(model, inputs), gradients(model, inputs, seed=1)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    if last:
        model.disable_input_require_grads()
        again = gradients(model, inputs, within=model.enable_input_require_grads)
    else:
        model.enable_input_require_grads()
        again = gradients(model, inputs)
    assert plain.keys() == again.keys()
    assert adapted or any("embed_tokens" in name for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(other[name], gradient, rtol=1e-2) for name, gradient in plain.items())


def test_only_the_main_table_of_a_model_with_one_for_each_layer():
    size = dict(vocab_size=64, hidden_size=WIDTH, intermediate_size=48, num_attention_heads=2, num_key_value_heads=1, head_dim=16)
    layers = dict(num_hidden_layers=1, layer_types=["full_attention"], hidden_size_per_layer_input=8, vocab_size_per_layer_input=64)
    model = Gemma4ForCausalLM(Gemma4TextConfig(**size, **layers, global_head_dim=16, num_kv_shared_layers=0)).train()
    inputs, seen = dict(input_ids=torch.arange(1, 49)[None]), []
    model.model.embed_tokens_per_layer.register_forward_hook(lambda _, __, output: seen.append(output))
    assert noise(model, Neftune(model, ALPHA), inputs).abs().max() == pytest.approx(ALPHA / math.sqrt(48), rel=0.01)
    assert all(torch.equal(output, seen[0]) for output in seen)


def test_bfloat16_rounds_once():
    model, inputs = make_small_gemma().to(torch.bfloat16).train(), dict(input_ids=ids(16, 60))
    neftune = Neftune(model, ALPHA)
    scale = torch.tensor(SCALE["gemma"]).bfloat16().item()  # as the layer itself has it
    assert neftune.scale == pytest.approx(scale, rel=1e-6)
    torch.manual_seed(0)
    found = noise(model, neftune, inputs)[0]
    torch.manual_seed(0)
    exact = (2 * torch.rand(16, 60, WIDTH) - 1) * ALPHA * scale / math.sqrt(60 * WIDTH)
    clean = embedded(model, inputs)
    assert found.dtype == torch.bfloat16
    with neftune.during(inputs):
        torch.manual_seed(0)
        assert torch.equal(embedded(model, inputs), (clean.float() + exact).bfloat16())


def test_a_table_of_zeros_and_a_padding_row_are_scaled_like_others():
    layer = torch.nn.Embedding(100, 6, padding_idx=77)
    torch.nn.init.zeros_(layer.weight)
    assert embedding_scale(layer) == embedding_scale(layer.to(torch.bfloat16)) == 1.0


class Normed(torch.nn.Embedding):
    def forward(self, input):
        return torch.nn.functional.layer_norm(super().forward(input), (self.embedding_dim,))


def test_a_layer_that_does_more_than_multiply_is_refused():
    with pytest.raises(RecipeError, match="Normed"):
        embedding_scale(Normed(100, 16))
    packed = torch.nn.Module()
    packed.weight = torch.nn.Parameter(torch.zeros(10, 2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(RecipeError, match="cannot read"):
        embedding_scale(packed)


def test_compiled_and_in_ddp_it_is_the_same_module(tmp_path):
    model, inputs = make_small_llama().train(), dict(input_ids=ids(1, 24))
    neftune, compiled = Neftune(model, ALPHA), torch.compile(model, backend="eager")
    for length in (24, 6, 12):  # compiled once, and still each batch its own
        with neftune.during(inputs, lengths=torch.full((1, 24), length)):
            found = compiled(**inputs, output_hidden_states=True).hidden_states[0]
        drawn = (found - model.get_input_embeddings()(inputs["input_ids"])).detach()
        assert drawn.std() == pytest.approx(ALPHA / math.sqrt(3 * length * WIDTH), rel=0.1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        assert noise(wrapped, Neftune(wrapped, ALPHA), inputs).any()
    finally:
        torch.distributed.destroy_process_group()
        torch.compiler.reset()


def test_upstream_is_weaker_by_the_root_of_the_documents_and_of_the_width(kind):
    """The border. When this fails transformers has mended its NEFTune: see whether ours is still needed."""
    model = MODELS[kind]().train()
    packed = dict(input_ids=ids(1, 64 * 8), position_ids=torch.arange(8).repeat(64)[None])
    ours, clean = noise(model, Neftune(model, ALPHA), packed, draws=3), embedded(model, packed)
    hook = activate_neftune(model, ALPHA)
    theirs = torch.stack([embedded(model, packed) - clean for _ in range(3)])
    assert (ours.std() / theirs.std()).item() == pytest.approx(8 * SCALE[kind], rel=0.01)
    assert hook.id in model.get_input_embeddings()._forward_hooks  # and stays, where training is interrupted
