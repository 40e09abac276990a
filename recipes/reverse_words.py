"""Learn to spell words backwards from nothing, with the mask and without.

A Llama of 0.4 M parameters reads `<abcd>` and is to say `dcba#`. Its letters are random, so nobody can predict those of the question:
what the mask leaves out is noise. Both arms have the same seed, rows, steps and optimiser; `everything` is trained on the question, too.

Hardware: 2 CPU cores; this is the full scale.
Command:  make train RECIPE=reverse-words                     one arm alone: ARGS="--mask everything"
Result:   0.988 of 256 held-out words with the mask and 1.000 without it, in 100 seconds for both; over four seeds 0.988 to 1.000 with
          it, 1.000 each time without. On the way there everything is ahead after 450 steps in each of them, after 750 in three.
"""

import random
import string
from collections.abc import Iterator
from itertools import islice

from sft_recipes import TINY, Recipe, RecipeTrainer

TRAIN, HELD_OUT, LONGEST = 20_000, 256, 10


def words() -> Iterator[str]:
    """Random words, no two alike, the same ones at every call."""
    rng, seen = random.Random("reverse-words"), set[str]()
    while True:
        word = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, LONGEST)))
        if word not in seen:
            seen.add(word)
            yield word


def row(word: str) -> dict[str, str]:
    return {"prompt": f"<{word}>", "completion": word[::-1]}


def held_out_words() -> Iterator[dict]:
    """The first of them, which are never trained on."""
    return map(row, islice(words(), HELD_OUT))


def train_words() -> Iterator[dict]:
    return map(row, islice(words(), HELD_OUT, HELD_OUT + TRAIN))


class ReverseWords(RecipeTrainer):
    recipe = Recipe(
        model=f"{TINY}/letters",
        from_scratch=True,
        data=train_words,
        held_out=held_out_words,
        dtype="float32",
        chat_template="plain",
        stop_token="#",
        primary="exact",
        max_new_tokens=LONGEST + 2,
        config=dict(
            max_steps=1200,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=64,
            learning_rate=3e-3,
            warmup_steps=100,
            max_length=32,
            eval_strategy="steps",
            eval_steps=150,
            save_strategy="no",
        ),
        ablation={"completion": {}, "everything": {"mask": "everything"}},
    )

    @staticmethod
    def score(reply: dict, expected: dict) -> dict[str, float]:
        return {"exact": float(reply["stopped"] and reply["content"] == expected["content"])}
