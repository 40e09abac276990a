"""Layouts: the cost model against operations counted one by one, the choice with its reason, steps against the trainer's own."""

import dataclasses
import json
import random
from types import SimpleNamespace

import pytest
import torch
from architectures import ARCHITECTURES, without_weights
from forests import random_rows, row
from steps import make_small_llama
from test_cli import run
from torch.utils.flop_counter import FlopCounterMode

from sft_recipes import Recipe, RecipeError, build_trainer, preflight
from sft_recipes.attention import Layout as Attention
from sft_recipes.attention.sharing import obstacle
from sft_recipes.plan import plan
from sft_recipes.preflight import tables
from sft_recipes.preflight.cost import Cost, cost
from sft_recipes.preflight.layouts import Abilities, abilities, choose
from sft_recipes.preflight.steps import counted, warnings
from sft_recipes.rows import forest, pack

CHEAP = Cost(matrices=1000, head=500, widths={None: 8, 4: 16}, experts=False)
ABLE = Abilities("", "SomeModel, full attention", "a kernel", CHEAP)


def settings(**changes):
    """As a `RecipeConfig` has them: batches of 4, two to a step, one process, three epochs."""
    usual = dict(per_device_train_batch_size=4, train_batch_size=4, gradient_accumulation_steps=2, world_size=1, num_train_epochs=3)
    usual |= dict(max_steps=-1, seed=0, data_seed=None, padding_free=False, pad_to_multiple_of=None, device=torch.device("cpu"))
    return SimpleNamespace(**{**usual, "train_sampling_strategy": "sequential", **changes})


def recipe(**fields):
    return Recipe(model="m", data="d", **fields)


def branches(count, shared=100, own=20):
    """Conversations with one prompt, all different behind it."""
    prompt = range(shared)
    return [row([*prompt, *range(1000 * i, 1000 * i + own)], shared, f"a:{i}") for i in range(1, count + 1)]


def chosen(rows, supervised=0, able=ABLE, config=None, **fields):
    return choose(recipe(**fields), config or settings(), rows, supervised, able)


# The cost model


def test_operations_are_those_of_a_real_forward_pass():
    """Torch counts every pair of tokens where attention is causal, and the head over all positions."""
    model, length = make_small_llama(), 24
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, length, dtype=torch.long))
    found, (width,) = cost(model), cost(model).widths.values()
    rotary = counter.get_total_flops() - found.separate([length], length).flops - 4 * width * length * (length - 1) // 2
    assert 0 <= rotary < 0.001 * counter.get_total_flops()  # the angles of the positions


def test_every_model_that_reads_packed_rows_has_a_cost():
    known = {name: without_weights(name, changes) for name, (changes, _) in ARCHITECTURES.items() if "Voxtral" not in name}
    found = {name: cost(model) for name, model in known.items() if not obstacle(model)}
    assert len(found) > 15 and all(one.matrices > 0 and one.head > 0 and one.widths for one in found.values())
    assert found["LlamaForCausalLM"] == Cost(2 * (32 * 16 * 2 + 32 * 32 * 2 + 3 * 32 * 48), 64 * 32, {None: 64}, False)
    assert found["Gemma3ForCausalLM"].widths == {4096: 32, None: 32} and found["MistralForCausalLM"].widths == {4096: 64}
    assert found["Gemma4ForCausalLM"].widths == {512: 32, None: 2048}  # heads of two widths
    experts = {name for name, one in found.items() if one.experts}
    assert {"Qwen3MoeForCausalLM", "GptOssForCausalLM", "MixtralForCausalLM"} <= experts and "LlamaForCausalLM" not in experts


def test_pairs_of_packed_rows_are_those_that_their_attention_sees(monkeypatch):
    monkeypatch.setattr(forest, "MIN_SHARED", 2)
    for seed in range(30):
        rows = random_rows(random.Random(seed))
        lengths = [len(one["input_ids"]) for one in rows]
        for share in (True, False):
            packed = pack(rows, share, count=2, seed=seed)
            work = CHEAP.tree(packed.rows, supervised=7)
            seen = {window: sum(visible(one, window) for one in packed.rows) for window in CHEAP.widths}
            assert work.flops == 2 * (packed.tokens * 1000 + 7 * 500) + 4 * (8 * seen[None] + 16 * seen[4])
            assert work.tokens == packed.tokens
        assert work == CHEAP.separate(lengths, supervised=7)


def visible(packed, window):
    forest = Attention(*(torch.tensor(packed[name])[None] for name in ("subtree_end", "position_ids")))
    return int(forest.seen(window).dense.sum())


# The choice


def test_packed_rows_are_taken_where_the_model_reads_them():
    rows = branches(8)
    layout = chosen(rows, 160)
    assert (layout.name, layout.reason, layout.kernel) == ("tree", "the model takes it (SomeModel, full attention)", "a kernel")
    counts = layout.counts(160)
    assert counts["tokens"] == {"padded": 960, "packed": 960, "tree": layout.packed.tokens} and counts["supervised_tokens"] == 160
    assert counts["limit"] == round(960 / (99 + 8 * 21), 3) and (counts["rows"], counts["row_tokens"]) == (2, 183)
    assert counts["empty"] == round(1 - layout.packed.tokens / (2 * 183), 4)
    flops = counts["predicted"]["flops"]
    assert counts["predicted"]["speed_up_over_padded"] == round(flops["padded"] / flops["tree"], 3) > 2
    assert json.loads(json.dumps(counts)) == counts


def test_what_was_asked_for_is_taken_and_the_tree_is_counted_beside_it():
    rows = branches(8)
    for packing, name in (("tree", "tree"), ("bfd", "bfd"), ("none", "none")):
        layout = chosen(rows, packing=packing)
        assert (layout.name, layout.reason, layout.packed is None) == (name, "asked for", name == "none")
        assert layout.work == chosen(rows).work and layout.limit == chosen(rows).limit
    assert chosen(rows, packing="bfd").packed.tokens == 960


def test_a_model_that_cannot_read_packed_rows_gets_one_conversation_a_row_and_the_reason():
    unable = Abilities("MambaModel has recurrent layers")
    layout = chosen(branches(8), able=unable)
    counts = layout.counts(160)
    assert (layout.name, layout.reason, layout.packed) == ("none", unable.obstacle, None)
    assert counts["tokens"] == {"padded": 960, "packed": 960} and counts["predicted"] is None and counts["limit"] is None
    for packing in ("tree", "bfd"):
        with pytest.raises(RecipeError, match=rf"^packing is '{packing}', but MambaModel has recurrent layers; leave it out, or take"):
            chosen(branches(8), able=unable, packing=packing)


def test_what_a_model_makes_of_packed_rows_is_said_in_words():
    llama, gemma2, mamba, deepseek = (
        without_weights(name, ARCHITECTURES[name][0])
        for name in ("LlamaForCausalLM", "Gemma2ForCausalLM", "MambaForCausalLM", "DeepseekV3ForCausalLM")
    )
    rectangles, dense = "flash attention over the visible rectangles", "the model's own attention with a dense mask"
    assert abilities(llama, None, settings()) == Abilities("", "LlamaModel, full attention", rectangles, cost(llama))
    assert abilities(gemma2, None, settings()).name == "Gemma2Model, sliding and full attention"
    assert [abilities(model, None, settings()).kernel for model in (gemma2, deepseek)] == [dense, dense]  # a soft cap; uneven heads
    assert abilities(llama, None, settings(device=torch.device("cuda"))).kernel == "FlexAttention with a block mask"
    assert abilities(llama, None, settings(device=torch.device("mps"))).kernel == dense
    assert "linear_attention" in abilities(mamba, None, settings()).obstacle
    assert abilities(llama, None, settings(padding_free=True)).obstacle == "padding_free lays each batch in one row already"


# Steps


LENGTHS = [*range(20, 60)] * 2


def different(lengths):
    """Conversations that share nothing."""
    return [row(range(1000 * i, 1000 * i + length), 5, f"a:{i}") for i, length in enumerate(lengths, 1)]


@pytest.mark.parametrize("world", [1, 3])
def test_packing_changes_neither_the_steps_nor_the_conversations_in_one(world):
    rows, config = different(LENGTHS), settings(world_size=world)
    found, without = counted(chosen(rows, config=config), rows, 500, config)
    assert without.per_epoch == -(-20 // (2 * world)) == found.per_epoch and without.in_all == found.in_all == 3 * found.per_epoch
    for count, in_a_row in ((found, 4), (without, 1)):
        assert count.each.conversations == 80 / count.per_epoch == pytest.approx(count.each.rows * in_a_row)
        assert count.each.supervised_tokens == 500 / count.per_epoch
    assert found.each.tokens == sum(LENGTHS) / found.per_epoch < without.each.tokens
    assert warnings(recipe(), config, rows, found, without) == []


def test_steps_of_a_sample_are_those_of_all():
    rows, config = different(LENGTHS), settings()
    whole, part = (counted(chosen(rows), rows, 500, config, share) for share in (1.0, 0.25))
    assert [some.per_epoch for some in part] == [4 * some.per_epoch for some in whole] and part[0].each == whole[0].each


def warned(rows, config=None, **fields):
    config = config or settings()
    made = dict(recipe=recipe(**fields), config=config, rows=rows)
    found, without = counted(choose(made["recipe"], config, rows, 0, ABLE), rows, 0, config)
    return found, without, warnings(made["recipe"], config, rows, found, without)


def test_rows_so_large_that_half_of_the_steps_are_gone_are_named_with_the_size_that_keeps_them():
    rows = different(LENGTHS)
    found, without, (line,) = warned(rows, row_tokens=2000)
    assert (found.in_all, without.in_all) == (3, 30)
    assert line.startswith("packed rows leave 3 of 30 optimiser steps, each of 80.0 conversations instead of 8.0; leave row_tokens out, or")
    size = int(line.split("--row_tokens ")[1].split(",")[0])
    assert line.endswith(f"pass --row_tokens {size}, for 30")
    assert warned(rows, row_tokens=size)[0].in_all == 30 and warned(rows, row_tokens=size)[2] == []
    assert warned(rows, settings(max_steps=30), row_tokens=2000)[2] == []  # steps are as many as asked for


ALONE = dict(per_device_train_batch_size=1, train_batch_size=1)  # so each packed row would hold one conversation


def test_a_long_conversation_among_short_ones_takes_no_steps():
    rows, config = different([*LENGTHS, 900]), settings(gradient_accumulation_steps=8, **ALONE)
    found, without, lines = warned(rows, config)
    assert (found.in_all, without.in_all, lines) == (33, 33, [])


def test_where_sharing_takes_them_the_accumulation_is_named_that_keeps_the_steps():
    """A row holds at least the longest conversation, and as many short ones as share a prompt and fit."""
    rows = [*branches(80, shared=400), {**different([900])[0], "source": "a:99"}]
    found, without, (line,) = warned(rows, settings(gradient_accumulation_steps=8, **ALONE))
    assert (found.in_all, without.in_all) == (3, 33)
    start = "packed rows leave 3 of 33 optimiser steps, each of 81.0 conversations instead of 7.4; a row has to hold the longest"
    assert line == f"{start} conversation, 900 tokens: pass --gradient_accumulation_steps 1 for 15 or take --packing none for all of them"
    found, without, (line,) = warned(rows, settings(gradient_accumulation_steps=1, **ALONE), row_tokens=5000)
    assert line.endswith("conversation, 900 tokens: take --packing none for all of them")


@pytest.fixture(scope="module")
def make(small_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")

    def build(**overrides):
        small = dict(scale="tiny", model=small_base, report_to="none", output_dir=str(folder), train_dataset=talks(53), held_out=5)
        return build_trainer("gemma-tools", **{**small, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, **overrides})

    return build


def talks(count):
    """Conversations of two to forty words about one long prompt."""
    rng, prompt = random.Random(0), "Read this and answer. " * 20
    return [
        {"messages": [{"role": "user", "content": f"{prompt}{i}"}, {"role": "assistant", "content": "yes " * rng.randint(2, 40)}]}
        for i in range(count)
    ]


@pytest.mark.parametrize("fields", [{}, dict(packing="none"), dict(packing="bfd", row_tokens=700)], ids=["tree", "none", "bfd"])
def test_steps_and_tokens_are_those_of_the_trainers_own_batches(make, fields):
    trainer = make(**fields)
    counts = preflight.check(trainer.resolved, talks(53)).counts
    found, loader = counts["steps"]["with_layout"], trainer.get_train_dataloader()
    _, per_epoch, _, _, _, _, in_all = trainer.set_initial_training_values(trainer.args, loader)
    batches = list(loader)
    assert (found["per_epoch"], found["in_all"]) == (per_epoch, in_all)
    layout = counts["layout"]
    assert sum(batch["input_ids"].numel() for batch in batches) == layout["tokens"][layout["chosen"]]
    assert found["tokens_per_step"] == round(layout["tokens"][layout["chosen"]] / per_epoch)
    assert sum(len(set(batch["source"])) for batch in batches) == 48 and found["conversations_per_step"] == round(48 / per_epoch, 1)
    assert layout["supervised_tokens"] == sum(int((batch["labels"] >= 0).sum()) for batch in batches)
    planned = plan(preflight.check(trainer.resolved, talks(53)))
    assert planned["rows"] == layout["name"] == trainer.layout.name and planned["steps"] == in_all
    assert planned["conversations_per_step"] == found["conversations_per_step"]


# What a person sees


@pytest.fixture
def words(tmp_path, monkeypatch, jsonl):
    monkeypatch.chdir(tmp_path)
    return ["gemma-tools", "--scale", "tiny", "--data", jsonl(talks(40)), "--held_out", jsonl(talks(45)[40:], "held.jsonl")]


def test_the_table_fits_a_terminal_and_says_what_is_chosen_and_why(words):
    lines = run("check", *words).stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("layout "))
    padded, packed, tree, text = lines[at + 1 : at + 5]
    assert padded.startswith("padded") and padded.endswith("1.00x") and packed.startswith("packed")
    assert tree.startswith("tree, chosen") and float(tree.split()[3][:-1]) > 2
    assert text.startswith("rows: tree, the model takes it (Gemma3TextModel, sliding and full attention);")
    assert "sharing saves" in " ".join(lines[at + 4 : at + 7]) and max(map(len, lines[at:])) <= 80
    at = next(i for i, line in enumerate(lines) if line.startswith("steps "))
    assert lines[at].split() == ["steps", "an", "epoch", "each:", "rows", "tokens", "supervised", "conversations"]
    apart, together = (line.split() for line in lines[at + 1 : at + 3])
    assert [*apart[:3], apart[-1]] == ["padded", "5", "8.0", "8.0"] and [*together[:3], together[-1]] == ["tree", "5", "1.0", "8.0"]
    assert int(together[3].replace(",", "")) < int(apart[3].replace(",", "")) / 2 and together[4] == apart[4]
    alone = run("check", *words, "--packing", "none").stdout
    assert "padded, chosen" in alone and "\nrows: one conversation each, asked for; the model's own attention\n" in alone


def test_steps_of_a_sample_are_told_as_about_as_many(words, monkeypatch):
    monkeypatch.setattr(preflight, "SAMPLE", 20)
    found = json.loads(run("check", *words, "--json").stdout)["counts"]["steps"]
    assert found["estimated"] and found["without_packing"]["per_epoch"] == 5
    assert "about 5" in run("check", *words).stdout


def test_a_model_without_packed_rows_has_a_table_of_one_line():
    layout = chosen(branches(8), able=Abilities("MambaModel has recurrent layers"))
    found = counted(layout, branches(8), 0, settings())[0].as_dict()
    counts = {"layout": layout.counts(0), "steps": {"estimated": False, "with_layout": found, "without_packing": found}}
    assert tables.layouts(counts).row_count == tables.steps(counts).row_count == 1
    assert str(tables.chosen(counts["layout"])).startswith("rows: one conversation each, MambaModel has recurrent layers; the model's own")


def test_a_model_of_experts_says_that_all_are_counted():
    able = dataclasses.replace(ABLE, cost=dataclasses.replace(CHEAP, experts=True))
    assert "the prediction counts all experts" in str(tables.chosen(chosen(branches(8), able=able).counts(0)))
    assert "experts" not in str(tables.chosen(chosen(branches(8)).counts(0)))
