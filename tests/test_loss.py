"""Promise 5 in small: the loss of each token equals the slow way and TRL's own head; the trainer's mean is the one worked out by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from sft_recipes import RecipeTrainer
from sft_recipes.optim.neftune import Neftune
from sft_recipes.rows import IGNORED
from sft_recipes.training.loss import context, loss_weights, spread, supervised, token_losses
from sft_recipes.training.tally import Tally


def batch(rows=3, length=12, seed=0):
    """Ids, and labels on about a third of the positions; rows padded on the right to different lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, 2000, (rows, length), generator=generator)
    mask = torch.stack([torch.arange(length) < length - 2 * row for row in range(rows)]).long()
    labels = torch.where((torch.rand(rows, length, generator=generator) < 0.35) & mask.bool(), ids, IGNORED)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def everything(inputs):
    """All predictions of real tokens."""
    return inputs["attention_mask"][:, 1:].bool()


@pytest.mark.parametrize("chosen", [supervised, everything], ids=["supervised", "everything"])
def test_each_token_costs_what_cross_entropy_over_all_logits_says(small_gemma, chosen):
    inputs = batch()
    logits = small_gemma(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    slow = cross_entropy(logits[:, :-1].transpose(1, 2), inputs["input_ids"][:, 1:], reduction="none") * chosen(inputs)
    found, balance, _ = token_losses(small_gemma, small_gemma.get_output_embeddings(), inputs, chosen(inputs))
    torch.testing.assert_close(found, slow, rtol=1e-5, atol=1e-5)
    assert balance is None


def test_losses_and_gradients_equal_trls_fused_head(small_gemma):
    """The border: on CUDA TRL's head is used, elsewhere ours, and they must be one loss."""
    from trl.trainer.utils import add_fused_lm_head

    inputs, head = batch(), small_gemma.get_output_embeddings()
    ours, *_ = token_losses(small_gemma, head, inputs, supervised(inputs))
    ours.sum().backward()
    gradients = {name: p.grad.clone() for name, p in small_gemma.named_parameters() if p.grad is not None}
    small_gemma.zero_grad()
    add_fused_lm_head(small_gemma)
    theirs, *_ = token_losses(small_gemma, head, inputs, supervised(inputs), fused=True)
    theirs.sum().backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for name, parameter in small_gemma.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_a_micro_batch_that_shows_nothing_has_a_gradient_of_zero(small_gemma):
    inputs = batch()
    losses, *_ = token_losses(small_gemma, small_gemma.get_output_embeddings(), inputs, torch.zeros(3, 11, dtype=torch.bool))
    losses.sum().backward()
    assert losses.sum() == 0 and not any(p.grad.any() for p in small_gemma.parameters() if p.grad is not None)


def test_the_head_is_itself_again_after_an_interruption(small_gemma):
    inputs, head = batch(), small_gemma.get_output_embeddings()

    def interrupted(*_):
        raise KeyboardInterrupt

    handle = head.register_forward_hook(interrupted)
    with pytest.raises(KeyboardInterrupt):
        token_losses(small_gemma, head, inputs, supervised(inputs))
    handle.remove()
    assert not head._forward_pre_hooks


def test_the_context_is_every_real_token_without_loss_that_has_a_predecessor_in_its_document():
    ids, labels = torch.arange(8)[None], torch.tensor([[IGNORED, IGNORED, 2, 3, IGNORED, IGNORED, 6, IGNORED]])
    padded = {"input_ids": ids, "labels": labels, "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]])}
    assert context(padded)[0].tolist() == [True, False, False, True, True, False, False]
    packed = {"input_ids": ids, "labels": labels, "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])}
    assert context(packed)[0].tolist() == [True, False, False, False, True, False, True]


@pytest.mark.parametrize(("there", "count"), [(0, 4), (3, 4), (4, 4), (5, 4), (1000, 32)])
def test_a_sample_is_of_what_is_there_spread_over_it_and_not_too_large(there, count):
    mask = torch.zeros(2, 600, dtype=torch.bool)
    mask.view(-1)[:there] = True
    found = spread(mask, count)
    assert not (found & ~mask).any() and min(there, count) / 2 <= found.sum() <= count
    if there > count:
        assert found.view(-1)[there // 2 : there].any()


class Fixed(torch.nn.Module):
    """A model that says the given probability for each next token, out of two."""

    def __init__(self, probabilities):
        super().__init__()
        logits = torch.tensor([[math.log(p), math.log(1 - p)] for p in probabilities])[None]
        self.head = torch.nn.Identity()
        self.logits = torch.cat([logits, logits[:, :1]], dim=1)

    def get_output_embeddings(self):
        return self.head

    def get_input_embeddings(self):
        return torch.nn.Embedding(2, 2)

    def forward(self, **_):
        return type("Output", (), {"logits": self.head(self.logits)})


def hand(probabilities, supervised, weights=None):
    """The trainer's own loss where token 0 is always right; `supervised` says which of the predicted tokens carry loss."""
    model = Fixed(probabilities)
    trainer = object.__new__(RecipeTrainer)
    trainer.accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=1, unwrap_model=lambda model: model)
    trainer.model, trainer.is_deepspeed_enabled, trainer.aux_loss_enabled = model, False, False
    trainer._noise, trainer._tally, trainer._step_loss = Neftune(model, None), Tally(), 0.0
    labels = torch.tensor([[IGNORED] + [0 if s else IGNORED for s in supervised]])
    batch = {"input_ids": torch.zeros_like(labels), "labels": labels}
    if weights:
        batch["loss_weights"] = torch.tensor([[0.0, *weights]])
    assert torch.equal(loss_weights(batch) > 0, labels[:, 1:] == 0)
    return trainer.compute_loss(model, batch).item()


def test_seven_tokens_two_of_them_the_response():
    """-(ln 0.018 + ln 0.41) / 2 = 2.45, whatever the five prompt tokens cost."""
    assert hand([0.5, 0.9, 0.3, 0.2, 0.018, 0.41], [0, 0, 0, 0, 1, 1]) == pytest.approx(2.45, abs=5e-3)


@pytest.mark.parametrize(
    ("mask", "mean"),
    [([1] * 8, 0.8875), ([0, 0, 0, 0, 0, 1, 1, 0], 1.05), ([0, 0, 0, 0, 0, 1, 1, 1], 0.8333)],
    ids=["everything", "completion", "completion with the stop token"],
)
def test_three_ways_of_masking_one_row(mask, mean):
    losses = [0.10, 2.80, 1.40, 0.20, 0.10, 1.20, 0.90, 0.40]
    assert hand([math.exp(-loss) for loss in losses], mask) == pytest.approx(mean, abs=1e-4)


def test_weights_scale_the_loss_and_what_it_is_divided_by():
    """(2 x 1.20 + 1 x 0.40) / 3, where the second token counts twice; with equal weights the plain mean."""
    losses = [0.10, 1.20, 0.40]
    probabilities = [math.exp(-loss) for loss in losses]
    assert hand(probabilities, [0, 1, 1], [0.0, 2.0, 1.0]) == pytest.approx(2.80 / 3, abs=1e-5)
    assert hand(probabilities, [0, 1, 1], [0.0, 0.5, 0.5]) == pytest.approx(0.80, abs=1e-5)


def test_a_mask_moved_by_one_either_way_is_another_loss():
    probabilities = [0.5, 0.9, 0.3, 0.2, 0.018, 0.41]
    right, early, late = [0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1]
    assert hand(probabilities, right) == pytest.approx(2.45, abs=5e-3)
    assert all(abs(hand(probabilities, moved) - 2.45) > 0.2 for moved in (early, late))
