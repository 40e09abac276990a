"""Promises 4 and 5 in packed rows: a step over trees has the loss and the gradients of the same conversations apart."""

import re

import pytest
import torch
from conftest import make_small_gemma, tokenizer_with
from peft import LoraConfig, PromptTuningConfig
from steps import KINDS, SIZE, make_small_llama, one_step, trainer_of
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    NemotronHConfig,
    NemotronHForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sft_recipes import RecipeError, supervise
from sft_recipes.attention import install, laid_out
from sft_recipes.attention.sharing import obstacle, prove
from sft_recipes.rows import build_rows, forest, pack
from sft_recipes.training.batches import collated
from sft_recipes.training.guards import blame
from sft_recipes.training.loss import supervised, token_losses

SMALL = {**SIZE, "head_dim": 16, "initializer_range": 0.2, "tie_word_embeddings": False}


def make_small_qwen3():
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SMALL)).eval()


def make_small_mistral():
    """Every layer with a window that bites."""
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SMALL, sliding_window=8)).eval()


def make_small_gpt_oss():
    """With sinks, experts, and a window that bites."""
    torch.manual_seed(0)
    experts = dict(
        num_local_experts=4,
        num_experts_per_tok=2,
        router_aux_loss_coef=0.0,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    )
    return GptOssForCausalLM(GptOssConfig(**SMALL, **experts)).eval()


def lora():
    return LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")


MODELS = {
    "gemma3": make_small_gemma,
    "llama": make_small_llama,
    "qwen3": make_small_qwen3,
    "mistral": make_small_mistral,
    "gpt-oss": make_small_gpt_oss,
    "gemma4": KINDS["full-gemma4"][0],
}


def user(text):
    return {"role": "user", "content": text}


def said(text, **more):
    return {"role": "assistant", "content": text, **more}


def answers():
    """Four answers to each of three questions, two of them word for word the same."""
    questions = ["Name a colour that the sky has.", "Which of the numbers up to nine is the largest one?", "Say it."]
    found = ["Blue.", "It is blue, I think.", "Blue.", "Some say grey " * 6]
    return None, [[user(question), said(answer)] for question in questions for answer in found]


def agent():
    """Conversations of one to three turns under one system prompt, some with weights."""
    system = {"role": "system", "content": "You are the assistant of a shop. You may look up what is there. " * 3}
    turns = [user("One?"), said("1", weight=0.5), user("Two, please?"), said("2 " * 7), user("Three?"), said("3 or " * 3, weight=2.0)]
    return None, [[system, user(f"I am {name}. What is it?"), said(f"It is for {name}."), *turns[: 2 * (i % 4)]] for i, name in NAMES]


REWRITING = """{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}
{% if m.reasoning_content and loop.last %}{{ m.reasoning_content }}
{% endif %}{{ m.content }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>assistant
{% endif %}"""
NAMES = list(enumerate(("Ada", "Bo", "Cy", "Di", "Ed", "Flo")))


def reasoning():
    """A template that drops the reasoning of earlier turns: each turn is a path of its own."""
    talks = []
    for i, name in NAMES:
        talk = []
        for turn in range(2 + i % 3):
            thought = f"They are {name}, and ask for {turn} the number. " * (1 + i % 2)
            talk += [user(f"Number {turn}?"), said(f"{turn}, {name}.", reasoning_content=thought)]
        talks.append(talk)
    return REWRITING, talks


DATA = {"answers": answers, "agent": agent, "reasoning": reasoning}


def separate(data, **options):
    """Separate rows of one of the data sets."""
    template, talks = DATA[data]()
    tokenizer = tokenizer_with("gemma3")
    tokenizer.chat_template = template or tokenizer.chat_template
    return build_rows([(f"talks.jsonl:{i + 1}", supervise(talk, tokenizer)) for i, talk in enumerate(talks)], None, **options)[0]


def trees(rows, **size):
    packed = pack(rows, share=True, **(size or {"count": 1}))
    assert packed.tokens < 0.9 * sum(len(row["input_ids"]) for row in rows)
    return packed.rows


@pytest.fixture(autouse=True)
def short_beginnings_are_shared(monkeypatch):
    monkeypatch.setattr(forest, "MIN_SHARED", 4)


@pytest.fixture
def kind(monkeypatch):
    """A way of training one of the models, under a name for `one_step`."""

    def named(model, training):
        monkeypatch.setitem(KINDS, "this", (MODELS[model], lora if training == "lora" else lambda: None))
        return dict(gradient_checkpointing=training == "checkpointing")

    return named


def assert_same_step(found, expected):
    (logs, gradients, _), (logs_expected, gradients_expected, _) = found, expected
    assert logs["loss"] == pytest.approx(logs_expected["loss"], rel=1e-5)
    assert logs["grad_norm"] == pytest.approx(logs_expected["grad_norm"], rel=1e-5)
    assert gradients.keys() == gradients_expected.keys() and gradients
    largest = max(float(torch.linalg.vector_norm(gradient)) for gradient in gradients_expected.values())
    for name, gradient in gradients.items():
        expected_norm = torch.linalg.vector_norm(gradients_expected[name])
        assert torch.linalg.vector_norm(gradient - gradients_expected[name]) <= 1e-5 * expected_norm + 1e-7 * largest, name
    for name in ("supervised_tokens_per_step", "examples_per_step"):
        assert logs[name] == logs_expected[name]
    assert logs["padding_share"] == 0


def apart(tmp_path, rows, **config):
    return one_step("this", tmp_path, rows, per_device_train_batch_size=len(rows), **config)


def together(tmp_path, packed, **config):
    """One step over packed rows, each a micro-batch."""
    return one_step("this", tmp_path, packed, per_device_train_batch_size=1, gradient_accumulation_steps=len(packed), **config)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("model", MODELS)
def test_a_step_over_trees_is_the_step_over_the_conversations_apart(kind, tmp_path, model, data):
    """Of all weights, with a window smaller than what is shared in Gemma 3 and 4 and gpt-oss."""
    kind(model, "full")
    rows = separate(data)
    assert_same_step(together(tmp_path, trees(rows)), apart(tmp_path, rows))


@pytest.mark.parametrize("training", ["lora", "checkpointing"])
@pytest.mark.parametrize("model", MODELS)
def test_so_it_is_with_an_adapter_and_with_checkpoints(kind, tmp_path, model, training):
    config = kind(model, training)
    rows = separate("reasoning")
    assert_same_step(together(tmp_path, trees(rows), **config), apart(tmp_path, rows, **config))


def test_a_packed_row_can_be_trained_in_mixed_precision(kind, tmp_path):
    """Weights in float32 under autocast: the norms of Gemma 3 leave queries and keys in float32, values are bfloat16."""
    kind("gemma3", "full")
    packed = trees(separate("reasoning"))
    exact, mixed = (together(tmp_path, packed, bf16=bf16)[0]["loss"] for bf16 in (False, True))
    assert mixed == pytest.approx(exact, rel=2e-2) and mixed != exact


@pytest.mark.parametrize("model", ["gemma3", "llama"])
def test_so_it_is_in_several_rows_and_with_several_rows_in_a_batch(kind, tmp_path, model):
    kind(model, "full")
    rows = separate("agent")
    packed = trees(rows, row_tokens=max(len(row["input_ids"]) for row in rows) + 40)
    assert len(packed) > 2
    expected = apart(tmp_path, rows)
    found = one_step("this", tmp_path, packed, per_device_train_batch_size=2, gradient_accumulation_steps=-(-len(packed) // 2))
    assert_same_step(together(tmp_path, packed), expected)
    assert_same_step(found, expected)


def test_so_it_is_where_everything_carries_loss_and_nothing_is_shared(kind, tmp_path):
    kind("llama", "full")
    rows = separate("answers", mask="everything")
    packed = pack(rows, share=True, count=3)
    assert packed.tokens == packed.separate_tokens and len(packed.rows) == 3
    assert_same_step(together(tmp_path, packed.rows), apart(tmp_path, rows))


@pytest.mark.parametrize("model", ["gemma3", "llama"])
def test_so_it_is_in_rows_of_whole_conversations(kind, tmp_path, model):
    kind(model, "full")
    rows = separate("answers")
    assert_same_step(together(tmp_path, pack(rows, share=False, count=1).rows), apart(tmp_path, rows))


@pytest.mark.parametrize("data", ["agent", "reasoning"])
def test_so_it_is_where_each_conversation_weighs_the_same(kind, tmp_path, data):
    kind("llama", "full")
    rows = separate(data, loss_per="example")
    assert_same_step(together(tmp_path, trees(rows)), apart(tmp_path, rows))


def test_loss_all_leaves_out_what_follows_from_nothing(kind, tmp_path):
    """The context of a tree is counted once, and where a branch begins there is no prediction."""
    kind("llama", "full")
    (row,) = trees(separate("answers"))
    logged, _, _ = together(tmp_path, [row])
    end, position = row["subtree_end"], row["position_ids"]
    follows = [i for i in range(1, len(end)) if position[i] == position[i - 1] + 1 and end[i - 1] > i]
    model, batch = make_small_llama(), collated(None, [row])
    install(model)
    scores = logits(model, batch)[0].log_softmax(-1)
    losses = [-float(scores[i - 1, row["input_ids"][i]]) for i in follows]
    assert logged["loss_all"] == pytest.approx(sum(losses) / len(losses), rel=0.05)


@pytest.mark.parametrize("model", MODELS)
def test_no_logit_depends_on_another_branch_bit_for_bit(model):
    model = MODELS[model]()
    install(model)
    batch = collated(None, trees(separate("answers")))
    known = {name: batch[name] for name in ("input_ids", "position_ids", "subtree_end")}
    before = logits(model, known)
    for number in range(len(batch["source"])):
        mine = batch["owner"][0] == number
        ids = torch.where(mine, (batch["input_ids"] + 7) % 2048, batch["input_ids"])
        after = logits(model, {**known, "input_ids": ids})
        assert torch.equal(after[:, ~mine], before[:, ~mine])
        assert not torch.equal(after[:, mine], before[:, mine])


def logits(model, batch):
    with torch.no_grad(), laid_out(batch):
        return model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits


@pytest.mark.parametrize("data", DATA)
def test_the_noise_has_the_declared_size_in_a_tree(kind, tmp_path, data):
    """Within 5% of its bound for the tokens of one conversation, as far as a few dozen draws of each width can tell, never above."""
    kind("llama", "full")
    (row,) = trees(separate(data))
    trainer = trainer_of("this", tmp_path, [row], neftune_noise_alpha=5.0, per_device_train_batch_size=1)
    found = []

    def measure(module, args, kwargs):
        if module.training:
            states = kwargs.get("hidden_states", args[0] if args else None)
            found.append((states - trainer.model.get_input_embeddings().weight[torch.tensor(row["input_ids"])[None].long()]).detach())

    trainer.model.get_decoder().layers[0].register_forward_pre_hook(measure, with_kwargs=True)
    trainer.train()
    (noise,) = found
    width = noise.shape[-1]
    for number in range(len(row["sources"])):
        leaves = [i for i in range(len(row["owner"])) if row["owner"][i] == number and row["subtree_end"][i] == i + 1]
        for leaf in leaves:
            length = row["position_ids"][leaf] + 1
            own = [i for i in range(leaf + 1) if row["owner"][i] == number and row["subtree_end"][i] == leaf + 1]
            bound = 5.0 / (length * width) ** 0.5
            largest = noise[0, own].abs().max().item()
            assert 0.95 * bound < largest <= 1.0001 * bound


def test_a_planted_row_is_named_among_all_of_a_packed_row(kind, tmp_path):
    kind("llama", "full")
    rows = separate("agent")
    trainer = trainer_of("this", tmp_path, trees(rows), per_device_train_batch_size=1)
    (token, *_) = set(rows[4]["input_ids"]) - {i for row in rows if row is not rows[4] for i in row["input_ids"]}
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight[token] = float("nan")
    with pytest.raises(RecipeError, match=r"worst first: talks.jsonl:5 \(loss nan, gradient norm nan\); talks.jsonl:\d \(loss \d"):
        trainer.train()


def test_what_a_conversation_adds_to_the_gradient_is_found_in_a_tree_as_in_its_own_row(tmp_path, kind):
    kind("llama", "full")
    model = make_small_llama()
    rows = separate("reasoning")
    install(model)

    def loss(batch):
        total = token_losses(model, model.get_output_embeddings(), batch, supervised(batch))[0].sum()
        return total, total.detach()

    apart_ = [collated(DataCollatorForLanguageModeling(0), [{**row, "input_ids": list(row["input_ids"])}]) for row in rows]
    found = {text.partition(" ")[0]: norm for norm, text in blame(model, [collated(None, trees(rows))], loss)}
    for source in found:
        parameters = [p for p in model.parameters() if p.requires_grad]
        total = sum(loss(batch)[0] for batch in apart_ if batch["source"] == [source])
        gradients = torch.autograd.grad(total, parameters)
        assert found[source] == pytest.approx(float(torch.stack([g.norm() for g in gradients]).norm()), rel=1e-5)


def test_a_model_that_mixes_tokens_past_the_layout_is_refused_before_a_step():
    """A layer that adds to each token the one before it, whatever the mask says."""
    model = make_small_llama()
    install(model)
    prove(model, 2048)
    model.model.layers[0].register_forward_hook(lambda module, args, output: output + output.roll(1, 1))
    with pytest.raises(RecipeError, match=r"packed rows are not exact for this model: .* take --packing none"):
        prove(model, 2048)
    assert not model.training


HINDERED = {
    "qwen3.5": (Qwen3_5TextConfig, Qwen3_5ForCausalLM, {}, "linear_attention"),
    "lfm2": (Lfm2Config, Lfm2ForCausalLM, dict(full_attn_idxs=[1], num_hidden_layers=2), "conv"),
    "mamba": (MambaConfig, MambaForCausalLM, {}, "linear_attention|recurrent"),
    "nemotron-h": (NemotronHConfig, NemotronHForCausalLM, {}, "linear_attention"),
    "llama4": (Llama4TextConfig, Llama4ForCausalLM, {}, "chunked_attention"),
    "bloom": (BloomConfig, BloomForCausalLM, {}, "cannot be exchanged"),
    "dropout": (LlamaConfig, LlamaForCausalLM, dict(attention_dropout=0.1), "attention_dropout is 0.1"),
}


@pytest.mark.parametrize("name", HINDERED)
def test_models_that_cannot_share_are_known_from_what_they_are(name):
    config, model, more, said_of_it = HINDERED[name]
    with torch.device("meta"):
        assert re.search(said_of_it, obstacle(model(config(**more))))


def test_the_others_can():
    assert [obstacle(make()) for make in MODELS.values()] == [""] * len(MODELS)
    prompts = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    assert "tokens of its own" in obstacle(make_small_llama(), prompts)


def test_generation_is_what_it_was():
    """The name of the attention has changed, and without a layout nothing else."""
    model, ids = make_small_gemma(), torch.tensor([[2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]])
    mask = torch.ones_like(ids).index_fill(1, torch.tensor([0, 1]), 0)
    before = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    install(model)
    assert torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False), before)
