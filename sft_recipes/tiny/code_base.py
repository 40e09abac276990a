"""Pre-train the tiny base of `llama-code`: `make code-base`.

A Llama (the class of `meta-llama/Llama-3.2-3B`) with about 1 M parameters, trained from scratch on generated Python functions. The
result is `llama/` beside this file: bfloat16 safetensors, a byte-level BPE tokenizer with special tokens as Llama 3 has them, and
`base.json` with what was done and measured. As Llama 3.2's base models it has no chat template, and reserved slots for control tokens.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .code_corpus import documents
from .pretraining import PIECES, make, options, train_bpe

FOLDER = Path(__file__).parent / "llama"
BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"
RESERVED = [f"<|reserved_special_token_{i}|>" for i in range(8)]
SPECIAL = [BOS, EOS, *RESERVED[:2], PAD, *RESERVED[2:]]  # in Llama 3.2's order, which has 256 of them
VOCABULARY = 1280
BLOCK = 128  # tokens in a training block


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 1,280 tokens; a BOS goes in front of every text, as Llama 3's does. It names no pad token, as Llama 3's."""
    pieces = PIECES.replace("[0-9]", "[0-9]{1,3}", 1)  # up to three digits a token, as Llama 3's
    bpe = train_bpe(documents(seed), SPECIAL, VOCABULARY, BOS, pieces)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BOS, eos_token=EOS, padding_side="left", model_max_length=1024)


def build_model(seed: int) -> LlamaForCausalLM:
    """The model with random weights: grouped queries and tied embeddings, as Llama 3.2 3B has."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=SPECIAL.index(BOS),
            eos_token_id=SPECIAL.index(EOS),
            initializer_range=0.05,
        )
    )


def main() -> None:
    chosen = options(str(__doc__).splitlines()[0], FOLDER, steps=800, batch_size=8, block=BLOCK)
    tokenizer = train_tokenizer(chosen.seed)
    make(chosen, tokenizer, build_model(chosen.seed), documents, BLOCK, saved=tokenizer)


if __name__ == "__main__":
    main()
