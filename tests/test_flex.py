"""Packed rows through FlexAttention, as on CUDA: its blocks, and whole steps with everything but the compiled kernel."""

import random

import pytest
import torch
from flexible import flexible_on_the_cpu
from test_attention import FORESTS, forest
from test_packed_step import MODELS, apart, assert_same_step, separate, together, trees
from test_packed_step import kind as kind
from test_packed_step import short_beginnings_are_shared as short_beginnings_are_shared
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from sft_recipes.attention import Layout, install, laid_out, path_lengths
from sft_recipes.attention.blocks import SIDE
from sft_recipes.attention.sharing import prove
from sft_recipes.rows import pack
from sft_recipes.training.batches import collated


def bordering(seed):
    """Trees of two levels whose stretches end at the borders of blocks, or one token beside them."""
    rng, end, position = random.Random(seed), [], []
    for _ in range(4):
        lengths = [SIDE * rng.randint(1, 3) + rng.choice((-1, 0, 0, 1)) for _ in range(rng.randint(1, 4))]
        start, trunk = len(end), lengths[0]
        end += [start + sum(lengths)] * trunk
        position += range(trunk)
        for length in lengths[1:]:
            end += [len(end) + length] * length
            position += range(trunk, trunk + length)
    return Layout(torch.tensor([end]), torch.tensor([position]))


def documents(*lengths):
    """One after the other, nothing shared."""
    ends = torch.tensor(lengths).cumsum(0).repeat_interleave(torch.tensor(lengths))
    return Layout(ends[None], torch.cat([torch.arange(length) for length in lengths])[None])


LARGE = {**{name: FORESTS[name] for name in ("0-3", "3-90", "4-300")}, **{f"borders {seed}": bordering(seed) for seed in range(3)}}
LARGE["documents"] = documents(2 * SIDE + 1, SIDE - 1, 4 * SIDE, SIDE + 1)


def listed(counts, indices):
    """The blocks in one of a block mask's lists, bools `(queries, keys)`."""
    found = torch.zeros(indices.shape[-2:], dtype=torch.bool)
    for query, (count, keys) in enumerate(zip(counts[0, 0], indices[0, 0], strict=True)):
        found[query, keys[:count].long()] = True
    return found


def kinds_of(mask):
    """Blocks in which the mask function is asked, and those it is not."""
    return listed(mask.kv_num_blocks, mask.kv_indices), listed(mask.full_kv_num_blocks, mask.full_kv_indices)


@pytest.mark.parametrize("window", [None, 2, 70, SIDE - 1, SIDE, SIDE + 1, 2 * SIDE - 1])
@pytest.mark.parametrize("name", LARGE)
def test_the_blocks_are_those_that_torch_finds_by_asking_for_every_pair(name, window):
    """Never one fewer, none twice; those that are wholly visible are the same."""
    layout = LARGE[name]
    seen = layout.seen(window)
    some, every = kinds_of(seen.blocks)
    asked_some, asked_every = kinds_of(create_block_mask(seen.allows, 1, None, len(layout), len(layout), device="cpu"))
    assert torch.equal(every, asked_every)
    assert not (some & every).any() and not (asked_some & ~some).any()
    assert (some | every).sum() <= 1.15 * (asked_some | asked_every).sum()
    assert torch.equal(seen.dense[0, 0], visible(layout, window))


def visible(layout, window):
    """Which pairs are, from the rule and nothing else."""
    each, position = torch.arange(len(layout)), layout.position
    inside = len(layout) if window is None else window
    return (each <= each[:, None]) & (each[:, None] < layout.end) & (position[:, None] - position < inside)


def test_blocks_of_a_long_row_are_made_without_looking_at_its_pairs(monkeypatch):
    """8,192 tokens; what is made on the way is never larger than a few columns, or the square of the number of blocks."""
    ends = torch.arange(2048, 8193, 2048).repeat_interleave(2048)
    layout = Layout(ends[None].int(), torch.arange(2048).repeat(4)[None].int())
    largest = []

    class Watched(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            largest.extend(x.numel() for x in torch.utils._pytree.tree_leaves(found) if isinstance(x, torch.Tensor))
            return found

    with Watched():
        mask = layout.seen(1024).blocks
    assert isinstance(mask, BlockMask) and mask.shape[-2:] == (8192, 8192)
    assert max(largest) <= 8192
    per_document = 2048 // SIDE
    assert kinds_of(layout.seen(None).blocks)[1].sum() == 4 * per_document * (per_document - 1) // 2


def test_nothing_is_read_back_from_the_device():
    """On the meta device a read fails; so would a wait on CUDA, which it stands for."""
    layout = Layout(torch.empty(1, 1000, dtype=torch.int32, device="meta"), torch.empty(1, 1000, dtype=torch.int32, device="meta"))
    assert layout.seen(None).blocks.kv_indices.device.type == layout.seen(64).blocks.kv_indices.device.type == "meta"
    inputs = {"subtree_end": layout.end[None], "position_ids": layout.position[None]}
    assert path_lengths(inputs).shape == (1, 1000)


@pytest.mark.parametrize("name", LARGE)
def test_the_longest_path_through_each_token_is_that_of_the_slow_way(name):
    layout = LARGE[name]
    found = path_lengths({"subtree_end": layout.end[None], "position_ids": layout.position[None]})
    slowly = [max(layout.position[at:end].tolist()) + 1 for at, end in enumerate(layout.end.tolist())]
    assert found.tolist() == [slowly]


def test_the_kinds_of_layers_and_rows_of_many_lengths_share_two_compilations():
    """One for the first length, one for all others: above eight torch would stop compiling, and compute all pairs."""
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, backend=counter)
    for seed in range(4):
        layout = forest(seed, 90)
        inputs = [torch.randn(1, heads, len(layout), 16) for heads in (4, 2, 2)]
        for window in (None, 17, 40):
            compiled(*inputs, block_mask=layout.seen(window).blocks, enable_gqa=True)
    assert counter.frame_count == 2


FULL = [(model, "full") for model in ("gemma3", "gemma4", "llama")]


@pytest.mark.parametrize(("model", "training"), [*FULL, ("gemma3", "lora"), ("gemma3", "checkpointing")])
def test_a_step_through_flex_attention_is_the_step_over_the_conversations_apart(kind, tmp_path, model, training):
    """Loss and every gradient, float32; gpt-oss's sinks need the logarithms that transformers asks for on CUDA alone."""
    config = kind(model, training)
    rows = separate("agent")
    packed = trees(rows)
    with flexible_on_the_cpu() as calls:
        found = together(tmp_path, packed, **config)
    assert calls and all(isinstance(mask, BlockMask) for mask in calls)
    assert_same_step(found, apart(tmp_path, rows, **config))


@pytest.mark.parametrize("model", ["gemma3", "llama"])
def test_no_logit_depends_on_another_branch(model):
    """Bit for bit."""
    model = MODELS[model]()
    install(model)
    batch = collated(None, trees(separate("answers")))
    known = {name: batch[name] for name in ("input_ids", "position_ids", "subtree_end")}
    mine = batch["owner"][0] == 3
    with flexible_on_the_cpu(), torch.no_grad(), laid_out(batch):
        shown = {"position_ids": batch["position_ids"]}
        before, after = (
            model(input_ids=ids, **shown).logits
            for ids in (known["input_ids"], torch.where(mine, (known["input_ids"] + 7) % 2048, known["input_ids"]))
        )
    assert torch.equal(after[:, ~mine], before[:, ~mine]) and not torch.equal(after[:, mine], before[:, mine])


def test_the_proof_before_the_first_step_goes_through_it_too():
    model = MODELS["gemma3"]()
    install(model)
    with flexible_on_the_cpu() as calls:
        prove(model, 2048)
    assert len(calls) == 2 * 2  # two rows with a tree, two layers


def test_in_bfloat16_a_tree_is_as_near_to_the_truth_as_separate_rows(kind, tmp_path):
    """Weights in float32 under autocast: the loss of both, held against that in float32."""
    kind("gemma3", "full")
    rows = separate("agent")
    exact = apart(tmp_path, rows)[0]["loss"]
    alone = abs(apart(tmp_path, rows, bf16=True)[0]["loss"] - exact)
    with flexible_on_the_cpu():
        shared = abs(together(tmp_path, pack(rows, share=True, count=1).rows, bf16=True)[0]["loss"] - exact)
    assert shared <= alone + 5e-3 * exact
