"""Write the bases of the recipes that train from scratch: `make scratch-bases`.

`letters/` for reverse-words and `sums/` for chain-of-thought, beside this file: the configuration of a small Llama and a tokenizer of
single characters. No weights: a run draws them from its seed.
"""

from __future__ import annotations

import string
from pathlib import Path

from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, PreTrainedTokenizerFast

STOP = "#"  # ends a turn, and fills what is never attended to
ALPHABETS = {"letters": f"{string.ascii_lowercase}<>{STOP}", "sums": f"{string.digits}+=;<>{{}}{STOP}"}
LONGEST = 96  # tokens in a row


def tokenizer_of(characters: str) -> PreTrainedTokenizerFast:
    """One id for each character, in their order; nothing is put around a text, and other characters are left out."""
    tokenizer = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(characters)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=STOP, padding_side="left", model_max_length=LONGEST)


def config_of(characters: str) -> LlamaConfig:
    """A Llama of 0.4 M parameters. Its rotations are faster than usual, as no text is longer than `LONGEST`."""
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(characters),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=8,
        max_position_embeddings=LONGEST,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=characters.index(STOP),
        pad_token_id=None,
    )


def main() -> None:
    """Write both folders."""
    for name, characters in ALPHABETS.items():
        folder = Path(__file__).with_name(name)
        config_of(characters).save_pretrained(folder)
        tokenizer_of(characters).save_pretrained(folder)


if __name__ == "__main__":
    main()
