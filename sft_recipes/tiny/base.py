"""Pre-train the tiny base: `make tiny-base`.

A Gemma 3 of the multimodal class (the class of `google/gemma-3-4b-it`) with about 2 M parameters and the smallest vision
tower that builds, trained from scratch on the generated corpus. The result is `gemma3/` beside this file: bfloat16
safetensors, a byte-level BPE tokenizer with Gemma's special tokens, its processor, and `base.json` with what was done and measured.
The chat template is not stored: it is read from the installed TRL (see `weights.load_tokenizer`).
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor, PreTrainedTokenizerFast
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from .corpus import documents
from .pretraining import make, options, train_bpe

FOLDER = Path(__file__).parent / "gemma3"
# Gemma 3's special tokens, in the order of its vocabulary where that matters: pad 0, eos 1, bos 2, unk 3.
SPECIAL = "<pad> <eos> <bos> <unk> <start_of_turn> <end_of_turn> <start_of_image> <end_of_image> <image_soft_token>".split()
VOCABULARY = 2048
BLOCK = 512  # tokens in a training block


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 2,048 tokens; digits stand alone; a BOS goes in front of every text, as Gemma's does."""
    bpe = train_bpe(documents(seed), SPECIAL, VOCABULARY, "<bos>")
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[4:6],
        **dict(zip(("boi_token", "eoi_token", "image_token"), SPECIAL[6:], strict=True)),
        padding_side="left",
        model_max_length=2048,
    )


def build_model(seed: int) -> Gemma3ForConditionalGeneration:
    """The model with random weights; its sliding window (128) is shorter than most conversations, so that it matters."""
    ids = {token: index for index, token in enumerate(SPECIAL)}
    text = dict(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=48,
        query_pre_attn_scalar=48,
        sliding_window=128,
        layer_types=["sliding_attention", "full_attention"] * 2,
        max_position_embeddings=2048,
        pad_token_id=ids["<pad>"],
        bos_token_id=ids["<bos>"],
        eos_token_id=ids["<eos>"],
    )
    vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=16, patch_size=8)
    torch.manual_seed(seed)
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=text,
            vision_config=vision,
            mm_tokens_per_image=1,
            boi_token_index=ids["<start_of_image>"],
            eoi_token_index=ids["<end_of_image>"],
            image_token_index=ids["<image_soft_token>"],
            pad_token_id=ids["<pad>"],
            bos_token_id=ids["<bos>"],
            eos_token_id=ids["<eos>"],
            initializer_range=0.05,
        )
    )


def build_processor(tokenizer: PreTrainedTokenizerFast, model: Gemma3ForConditionalGeneration) -> Gemma3Processor:
    """What Gemma 3 has on the Hub beside its tokenizer, and a server loads first: how an image becomes pixels and tokens."""
    side = model.config.vision_config.image_size
    images = Gemma3ImageProcessorPil(size={"height": side, "width": side})
    return Gemma3Processor(images, tokenizer, image_seq_length=model.config.mm_tokens_per_image)


def main() -> None:
    chosen = options(str(__doc__).splitlines()[0], FOLDER, steps=3600, batch_size=4, block=BLOCK)
    tokenizer, model = train_tokenizer(chosen.seed), build_model(chosen.seed)
    make(chosen, tokenizer, model, documents, BLOCK, saved=build_processor(tokenizer, model))


if __name__ == "__main__":
    main()
