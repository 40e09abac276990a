"""Learn to add from nothing, with reasoning before the answer and without.

A Llama of 0.4 M parameters reads `<3+4+5>` and is to say `{3+4=7;7+5=12}12#`, or `12#` at once. The reasoning is part of the response,
so the same mask trains it. Both arms have the same sums, seed, steps and optimiser; a direct answer is shorter, so its steps are cheaper.

Hardware: 2 CPU cores; this is the full scale.
Command:  make train RECIPE=chain-of-thought                  one arm alone: ARGS="--arm direct"
Result:   1.000 of 200 held-out sums with reasoning, 0.945 without (0.800 to 1.000 by number of terms), in 2 minutes for both; one seed.
"""

import random
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise

from sft_recipes import TINY, Recipe, RecipeTrainer

TRAIN, HELD_OUT = 20_000, 40  # sums in all; held out of each number of terms
FEWEST, MOST = 3, 7  # terms


def sums() -> tuple[list[Sequence[int]], list[Sequence[int]]]:
    """Sums of single digits to train on and held out, no two alike, the same ones at every call."""
    rng = random.Random("chain-of-thought")
    by_terms, train, seen = dict[int, list](), list[Sequence[int]](), set[Sequence[int]]()
    while len(train) < TRAIN:
        terms = tuple(rng.choices(range(10), k=rng.randint(FEWEST, MOST)))
        if terms in seen:
            continue
        seen.add(terms)
        kept = by_terms.setdefault(len(terms), [])
        (kept if len(kept) < HELD_OUT else train).append(terms)
    return train, [terms for n in sorted(by_terms) for terms in by_terms[n]]


def row(terms: Sequence[int], reasoned: bool) -> dict[str, str]:
    totals = list(accumulate(terms))
    steps = [f"{before}+{term}={after}" for (before, after), term in zip(pairwise(totals), terms[1:], strict=True)]
    reasoning = "{" + ";".join(steps) + "}" if reasoned else ""
    return {"prompt": f"<{'+'.join(map(str, terms))}>", "completion": f"{reasoning}{totals[-1]}"}


def train_sums(reasoned: bool = True) -> Iterator[dict]:
    return (row(terms, reasoned) for terms in sums()[0])


def held_out_sums(reasoned: bool = True) -> Iterator[dict]:
    return (row(terms, reasoned) for terms in sums()[1])


class ChainOfThought(RecipeTrainer):
    recipe = Recipe(
        model=f"{TINY}/sums",
        from_scratch=True,
        data=train_sums,
        held_out=held_out_sums,
        dtype="float32",
        chat_template="plain",
        stop_token="#",
        primary="exact",
        max_new_tokens=64,
        config=dict(
            max_steps=800,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            learning_rate=3e-3,
            warmup_steps=80,
            max_length=96,
            eval_strategy="steps",
            eval_steps=100,
            save_strategy="no",
        ),
        ablation={"reasoned": {}, "direct": {"data": partial(train_sums, False), "held_out": partial(held_out_sums, False)}},
    )

    @staticmethod
    def score(reply: dict, expected: dict) -> dict[str, float]:
        answer, right = (message["content"].rpartition("}")[2] for message in (reply, expected))
        exact = float(reply["stopped"] and answer == right)
        return {"exact": exact, f"exact_{expected['asked'].count('+') + 1}_terms": exact}
