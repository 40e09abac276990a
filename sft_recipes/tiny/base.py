"""Pre-train the tiny base: `make tiny-base`.

A Gemma 3 of the multimodal class (the class of `google/gemma-3-4b-it`) with about 2 M parameters and the smallest vision
tower that builds, trained from scratch on the generated corpus. The result is `gemma3/` beside this file: bfloat16
safetensors, a byte-level BPE tokenizer with Gemma's special tokens, its processor, and `base.json` with what was done and measured.
The chat template is not stored: it is read from the installed TRL (see `weights.load_tokenizer`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor, PreTrainedTokenizerFast
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from .corpus import documents

FOLDER = Path(__file__).parent / "gemma3"
# Gemma 3's special tokens, in the order of its vocabulary where that matters: pad 0, eos 1, bos 2, unk 3.
SPECIAL = "<pad> <eos> <bos> <unk> <start_of_turn> <end_of_turn> <start_of_image> <end_of_image> <image_soft_token>".split()
VOCABULARY = 2048
# A word with the space before it, a digit, or a run of anything else, so that JSON's `": "` can be one token.
# A line break stands alone: merged with what follows, a turn's first token would differ from the one a served model says.
PIECES = r"\n| ?[A-Za-z]+|[0-9]|[^A-Za-z0-9\n]+(?= [A-Za-z])|[^A-Za-z0-9\n]+"
BLOCK = 512  # tokens in a training block


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 2,048 tokens; digits stand alone; a BOS goes in front of every text, as Gemma's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(itertools.islice(documents(seed), 30_000), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", SPECIAL.index("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
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


def blocks(tokenizer: PreTrainedTokenizerFast, seed: int, batch_size: int):
    """An endless stream of `(batch_size, BLOCK)` token ids: documents end to end, each `<bos> ... <eos>`."""
    stream = documents(seed)
    buffer: list[int] = []
    while True:
        while len(buffer) < batch_size * BLOCK:
            for ids in tokenizer(list(itertools.islice(stream, 256)))["input_ids"]:
                buffer += [*ids, tokenizer.eos_token_id]
        yield torch.tensor(buffer[: batch_size * BLOCK]).view(batch_size, BLOCK)
        buffer = buffer[batch_size * BLOCK :]


def pretrain(model, batches, steps: int, peak: float = 3e-3) -> list[float]:
    """AdamW, 2% warm-up, cosine to a tenth; gives the loss (nats per token) of every step."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.95), fused=True
    )
    warmup, losses = max(1, steps // 50), []
    for step, batch in zip(bar := tqdm(range(steps), desc="pre-training"), batches, strict=False):
        progress = max(0.0, (step - warmup) / (steps - warmup))
        rate = peak * min((step + 1) / warmup, 0.1 + 0.45 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 50 == 0:
            bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.3f}")
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch_size", type=int, default=4, help="blocks of 512 tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=FOLDER)
    options = parser.parse_args()
    started = time.monotonic()
    tokenizer = train_tokenizer(options.seed)
    model = build_model(options.seed)
    losses = pretrain(model, blocks(tokenizer, options.seed + 1, options.batch_size), options.steps)
    model.to(torch.bfloat16).save_pretrained(options.output_dir)
    build_processor(tokenizer, model).save_pretrained(options.output_dir)
    record = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": options.steps,
        "tokens": options.steps * options.batch_size * BLOCK,
        "seed": options.seed,
        "loss_first_50": sum(losses[:50]) / 50,
        "loss_last_50": sum(losses[-50:]) / 50,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "cores": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    (options.output_dir / "base.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
