"""The tiny scale's data for `llama-code`: what somebody asks for, the function that does it, and tests that it passes.

Training and held-out pairs share their wording and what functions can do, and no name, number or word: see `functions`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from .functions import Function, function

TRAIN, HELD_OUT = 1500, 100
ASKS = (
    "Write a function named {name} that {does}.",
    "Please write a Python function called {name} that {does}.",
    "I need a function {name} that {does}.",
    "Write {name}, a function that {does}.",
    "In Python, how do I write a function {name} that {does}?",
)


def train_pairs() -> Iterator[dict]:
    """1,500 pairs to train on, the same ones at every call."""
    return pairs(TRAIN, held_out=False)


def held_out_pairs() -> Iterator[dict]:
    """100 other ones, whose names, numbers and words no training pair has."""
    return pairs(HELD_OUT, held_out=True)


def pairs(count: int, held_out: bool) -> Iterator[dict]:
    """Rows with `prompt`, `completion` and `tests`, of functions that all have names of their own."""
    rng = random.Random(f"llama-code {held_out}")
    seen: set[str] = set()
    while len(seen) < count:
        made = function(rng, held_out)
        if made.name not in seen:
            seen.add(made.name)
            yield _pair(rng, made)


def _pair(rng: random.Random, made: Function) -> dict:
    asked = rng.choice(ASKS).format(name=made.name, does=" and then ".join(made.says))
    return {"prompt": asked, "completion": f"```python\n{made.code}\n```", "tests": _asserts(made)}


def _asserts(made: Function) -> list[str]:
    """What the function gives for its arguments, found out by running it."""
    namespace: dict[str, Any] = {}
    exec(made.code, namespace)
    return [f"assert {made.name}({argument!r}) == {namespace[made.name](argument)!r}" for argument in made.arguments]
