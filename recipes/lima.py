"""Teach a base model to answer, with 1,000 curated conversations.

After LIMA (arXiv 2305.11206): a thousand conversations are enough where the answers are good and the questions differ. All weights are
trained, without dropout (the paper's is left out: three epochs, not fifteen) and with the paper's AdamW, which is the default here.
`check` has what decides whether 1,000 are enough: copies, near copies, and how many different ones they amount to (Vendi score).

Hardware: one CUDA GPU with 24 GB (not measured by us yet); without CUDA, the tiny scale on 2 CPU cores.
Command:  make train RECIPE=lima                            one arm alone: ARGS="--arm repeated"
Result:   tiny scale: exact_match from 0.00 to 0.76 on 100 held-out talks; one seed. With 50 of the 1,000, each 20 times, in the same
          steps, 0.02, and the held-out loss rises from the first epoch on; `check` counts 278 different prompts in the one, 38 in the
          other, and warns.

Data:     GAIR/lima is gated (accept its conditions, then `hf auth login`) and not for commercial use: CC BY-NC-SA, or what its sources
          demand where that is stricter. Of its 1,030 training rows 30 are held out; its test rows have no answers.

An open question has no one right answer, and the authors of LIMA chose their checkpoint by reading, as the held-out loss rose while the
answers became better. So the score that keeps a checkpoint is `stops`, what a base has yet to learn: an answer ends by itself. Beside
it stand `repeats`, `echoes_prompt` and `distinct`; read the samples. The questions of the tiny scale have one right answer each.
"""

import json
from collections.abc import Iterator
from functools import partial

from sft_recipes import TINY, Recipe, RecipeError, RecipeTrainer, scores
from sft_recipes.tiny.talks import held_out_talks, train_talks

LIMA = "GAIR/lima"


def lima() -> Iterator[dict]:
    """The rows of its train split: `conversations`, a list of texts, and `source`.

    Read as a file, because the repository has a loading script, which `datasets` no longer runs.

    Raises:
        RecipeError: it cannot be had, with what to do.
    """
    from huggingface_hub import hf_hub_download

    try:
        file = hf_hub_download(LIMA, "train.jsonl", repo_type="dataset")
    except Exception as error:  # the hub and the network raise their own
        reason = str(error).strip().partition("\n")[0]
        raise RecipeError(
            f"{LIMA}: cannot be loaded: {type(error).__name__}: {reason}; it is gated: accept its conditions at "
            f"https://huggingface.co/datasets/{LIMA}, then `hf auth login`; or name conversations of your own with --data"
        ) from error
    with open(file, encoding="utf-8") as lines:
        yield from map(json.loads, lines)


class Lima(RecipeTrainer):
    recipe = Recipe(
        model="Qwen/Qwen2.5-0.5B",
        data=lima,
        held_out=30,
        dtype="float32",  # a step of 1e-5 on a weight of 0.02 is lost in bfloat16's rounding
        primary="stops",
        max_new_tokens=2048,  # its answers are long, and one that is cut has not stopped
        config=dict(
            num_train_epochs=3,
            per_device_train_batch_size=4,
            per_device_eval_batch_size=8,
            gradient_accumulation_steps=2,
            learning_rate=1e-5,
            warmup_steps=0.03,
            max_length=4096,
        ),
        tiny=dict(
            model=f"{TINY}/gemma3",
            data=train_talks,
            held_out=held_out_talks,
            chat_template="gemma3",
            primary="exact_match",
            max_new_tokens=48,
            config=dict(
                num_train_epochs=3,
                per_device_train_batch_size=8,
                per_device_eval_batch_size=64,
                gradient_accumulation_steps=1,
                learning_rate=1e-3,
                max_length=256,
            ),
            ablation={"curated": {}, "repeated": {"data": partial(train_talks, 50)}},
        ),
    )

    @staticmethod
    def conversation(row: dict) -> dict:
        """LIMA's rows are texts in turn, the user's first; every other form stays as it is."""
        texts = row.get("conversations")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            return row
        return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]}

    @staticmethod
    def score(reply: dict, expected: dict) -> dict[str, float]:
        return {"exact_match": scores.exact_match(reply, expected)} if expected.get("tests") == "exact" else {}
