"""The attention of packed rows: every visible pair once, no other pair at all, the numbers of the slow obvious way."""

import inspect
import random

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers.masking_utils import flex_attention_mask

from sft_recipes.attention import Layout, ragged
from sft_recipes.attention.pieces import LARGE, SMALL, pieces, segments

WINDOWS = (None, 2, 5, 17, 70, 200)


def forest(seed, longest, trees=3, depth=3):
    """A random forest laid out depth-first."""
    rng, end, position = random.Random(seed), [], []

    def grow(below, at):
        start = len(end)
        length = rng.randint(1, longest)
        end.extend([0] * length)
        position.extend(range(at, at + length))
        for _ in range(rng.choice((0, 2, 3)) if below else 0):
            grow(below - 1, at + length)
        end[start : start + length] = [len(end)] * length

    for _ in range(trees):
        grow(depth, 0)
    return Layout(torch.tensor([end]), torch.tensor([position]))


SIZES = ((0, 3, 3), (1, 20, 3), (2, 20, 3), (3, 90, 3), (4, 300, 2))
FORESTS = {f"{seed}-{longest}": forest(seed, longest, depth=depth) for seed, longest, depth in SIZES}


def brute(layout, window):
    """Which pairs are visible, from the rule and nothing else; bools, queries by keys."""
    end, position = layout.end.tolist(), layout.position.tolist()
    inside = len(end) if window is None else window
    return torch.tensor([[k <= q < end[k] and position[q] - position[k] < inside for k in range(len(end))] for q in range(len(end))])


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", FORESTS)
def test_the_pieces_hold_every_visible_pair_once(name, window):
    layout = FORESTS[name]
    seen = layout.seen(window)
    held = torch.zeros(len(layout), len(layout), dtype=torch.int)
    for piece in seen.pieces:
        queries, keys = piece.behind_query - piece.first_query, piece.behind_key - piece.first_key
        added = seen.added(piece, torch.float32)
        inside = torch.ones(queries, keys).tril() if len(piece.runs) == 1 else torch.ones(queries, keys)
        held[piece.first_query : piece.behind_query, piece.first_key : piece.behind_key] += (inside if added is None else added == 0).int()
    visible = brute(layout, window)
    assert torch.equal(held, visible.int()) and torch.equal(seen.dense[0, 0], visible)


def test_one_of_the_forests_has_rectangles_that_are_cut():
    assert max(end - stop for _, stop, end in FORESTS["4-300"].segments) > LARGE


def test_little_is_computed_that_is_not_seen():
    """Of a prefix with eight branches, of which a dense mask would throw most away."""
    prefix, branch = 1500, 100
    found = [(0, prefix, prefix + 8 * branch), *((at, at + branch, at + branch) for at in range(prefix, prefix + 8 * branch, branch))]
    position = [*range(prefix), *(list(range(prefix, prefix + branch)) * 8)]

    def computed(window):
        total = 0
        for piece in pieces(found, position, window):
            queries, keys = piece.behind_query - piece.first_query, piece.behind_key - piece.first_key
            total += queries * (queries + 1) // 2 if len(piece.runs) == 1 else queries * keys
        return total

    visible = prefix * (prefix + 1) // 2 + 8 * branch * prefix + 8 * branch * (branch + 1) // 2
    assert computed(None) == visible
    assert computed(256) < 1.3 * 256 * (prefix + 8 * branch)


def test_short_documents_share_a_call():
    found = segments([end for end in range(10, 1290, 10) for _ in range(10)])
    assert len(found) == 128
    assert len(pieces(found, list(range(10)) * 128)) == -(-1280 // (2 * SMALL - 8))


def slowly(query, key, value, layout, window, sinks):
    """Softmax over a full matrix of scores."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).masked_fill(~brute(layout, window), -torch.inf)
    if sinks is None:
        return scores.softmax(-1) @ value
    beside = sinks[None, :, None, None].expand(*scores.shape[:3], 1)
    return torch.cat([scores, beside], -1).softmax(-1)[..., :-1] @ value


@pytest.mark.parametrize("sinks", [False, True], ids=["plain", "sinks"])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", ["1-20", "3-90"])
def test_output_and_gradients_are_those_of_the_slow_way(name, window, sinks):
    """With four heads that share two of keys and values, as the borders of torch's kernel have to allow."""
    torch.manual_seed(0)
    layout = FORESTS[name]
    inputs = [torch.randn(1, heads, len(layout), 16, requires_grad=True) for heads in (4, 2, 2)]
    inputs += [torch.randn(4, requires_grad=True)] if sinks else []
    gradient = torch.randn(1, 4, len(layout), 16)
    found = ragged.attention(*inputs[:3], layout.seen(window), None, *inputs[3:])
    expected = slowly(*inputs[:3], layout, window, inputs[3] if sinks else None)
    pairs = zip(torch.autograd.grad(found, inputs, gradient), torch.autograd.grad(expected, inputs, gradient), strict=True)
    for one, other in [(found, expected), *pairs]:
        assert torch.linalg.vector_norm(one - other) <= 5e-6 * torch.linalg.vector_norm(other)


def test_in_bfloat16_it_is_as_near_to_the_truth_as_torchs_own():
    torch.manual_seed(0)
    layout = FORESTS["3-90"]
    inputs = [torch.randn(1, 2, len(layout), 16) for _ in range(3)]
    truth = slowly(*inputs, layout, None, None)
    low = [x.bfloat16() for x in inputs]
    found = ragged.attention(*low, layout.seen(None), None)
    torchs = torch.nn.functional.scaled_dot_product_attention(*low, attn_mask=layout.seen(None).dense)
    assert found.dtype == torch.bfloat16
    assert (found - truth).norm() <= 1.1 * (torchs - truth).norm()


@pytest.mark.parametrize("window", [None, 17])
def test_a_branch_knows_nothing_of_the_others_bit_for_bit(window):
    torch.manual_seed(0)
    layout = FORESTS["3-90"]
    query, key, value = (torch.randn(1, 2, len(layout), 16) for _ in range(3))
    seen = layout.seen(window)
    before = ragged.attention(query, key, value, seen, None)
    for start, stop, end in layout.segments[1::3]:
        other_key, other_value = key.clone(), value.clone()
        other_key[:, :, start:stop], other_value[:, :, start:stop] = 50 * torch.randn(2, 1, 2, stop - start, 16)
        after = ragged.attention(query, other_key, other_value, seen, None)
        outside = torch.ones(len(layout), dtype=torch.bool)
        outside[start:end] = False
        assert torch.equal(after[:, :, outside], before[:, :, outside])
        assert not torch.equal(after[:, :, start:stop], before[:, :, start:stop])


@pytest.mark.parametrize("window", [None, 17])
def test_flex_attention_under_the_same_rule_gives_the_same(window):
    """What CUDA computes, as far as a CPU can: forward, without compilation, through the function that transformers is given."""
    torch.manual_seed(0)
    layout = FORESTS["3-90"]
    seen = layout.seen(window)
    query, key, value = (torch.randn(1, heads, len(layout), 16) for heads in (4, 2, 2))
    block_mask = create_block_mask(seen.allows, 1, None, len(layout), len(layout), device="cpu")
    found = flex_attention(query, key, value, block_mask=block_mask, enable_gqa=True)
    assert torch.allclose(found, ragged.attention(query, key, value, seen, None), atol=1e-5)


def test_transformers_makes_such_a_mask_from_what_it_is_given_on_cuda():
    taken = inspect.signature(flex_attention_mask).parameters
    assert {"batch_size", "q_length", "kv_length", "mask_function", "device"} <= taken.keys()
    assert all(taken[name].default == 0 for name in ("q_offset", "kv_offset"))
