"""All weights come back from a checkpoint, whatever they are called in it."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sft_recipes import RecipeError
from sft_recipes.weights.checkpoint import restore


def emptied(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def test_every_weight_is_restored(small_gemma, tmp_path):
    small_gemma.save_pretrained(tmp_path)
    kept = {name: tensor.clone() for name, tensor in small_gemma.state_dict().items()}
    restore(emptied(small_gemma), tmp_path)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in small_gemma.state_dict().items())
    assert small_gemma.lm_head.weight is small_gemma.get_input_embeddings().weight  # still tied


def test_upstream_restores_nothing_of_this_class(small_gemma, tmp_path):
    """The border: where this fails, transformers' trainer loads what it has saved, and `restore` can go."""
    small_gemma.save_pretrained(tmp_path)
    emptied(small_gemma).load_state_dict(load_file(tmp_path / "model.safetensors"), False)
    assert not any(parameter.any() for parameter in small_gemma.parameters())


def test_a_checkpoint_that_lacks_a_weight_is_refused(small_gemma, tmp_path):
    small_gemma.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in saved if name.endswith("q_proj.weight") and "language" in name)
    save_file({name: tensor for name, tensor in saved.items() if name != gone}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeError, match="no checkpoint of this model"):
        restore(small_gemma, tmp_path)
