"""Small Python functions, made up on the spot, for the tiny scale of `llama-code`: what each does in words, its code, calls of it.

A function does one or two things to a number, a text or a list: `adds 41 to the price and then turns it around`. Its name, its number
and its word are open values, of two halves as in `words`; what can be done, and how it is written, is a small fixed stock.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from .corpus import LEXICON
from .words import is_held_out

NOUNS = [word for word in LEXICON if len(word) <= 5][:100]  # of which names are made: `lamp_river`


class Step(NamedTuple):
    """One thing to do.

    Attributes:
        says: in words, third person; `{it}` is what it is done to, `{n}` a number, `{w}` a word.
        code: the Python expression, likewise.
        last: whether what comes out is of another kind, so that nothing of this kind can follow.
    """

    says: str
    code: str
    last: bool = False

    @property
    def open(self) -> bool:
        """Whether it has a number or a word of its own."""
        return "{n}" in self.code or "{w}" in self.code


NUMBER = [
    Step("adds {n} to {it}", "{it} + {n}"),
    Step("takes {n} from {it}", "{it} - {n}"),
    Step("multiplies {it} by {n}", "{it} * {n}"),
    Step("divides {it} by {n} and rounds down", "{it} // {n}"),
    Step("gives the rest of {it} divided by {n}", "{it} % {n}"),
    Step("gives the larger of {it} and {n}", "max({it}, {n})"),
    Step("gives the smaller of {it} and {n}", "min({it}, {n})"),
    Step("tells whether {it} is above {n}", "{it} > {n}", last=True),
    Step("tells whether {it} is below {n}", "{it} < {n}", last=True),
    Step("doubles {it}", "{it} + {it}"),
    Step("squares {it}", "{it} * {it}"),
    Step("turns the sign of {it}", "-{it}"),
]
TEXT = [
    Step("puts '{w}' in front of {it}", "'{w}' + {it}"),
    Step("puts '{w}' behind {it}", "{it} + '{w}'"),
    Step("removes '{w}' from {it}", "{it}.replace('{w}', '')"),
    Step("repeats {it} {n} times", "{it} * {n}"),
    Step("turns {it} around", "{it}[::-1]"),
    Step("writes {it} in capitals", "{it}.upper()"),
    Step("tells whether {it} starts with '{w}'", "{it}.startswith('{w}')", last=True),
    Step("counts how often '{w}' is in {it}", "{it}.count('{w}')", last=True),
]
LIST = [
    Step("adds {n} to each of {it}", "[x + {n} for x in {it}]"),
    Step("multiplies each of {it} by {n}", "[x * {n} for x in {it}]"),
    Step("keeps those of {it} that are above {n}", "[x for x in {it} if x > {n}]"),
    Step("keeps those of {it} that are below {n}", "[x for x in {it} if x < {n}]"),
    Step("sorts {it}", "sorted({it})"),
    Step("turns {it} around", "{it}[::-1]"),
    Step("gives the sum of {it}", "sum({it})", last=True),
    Step("gives the largest of {it}", "max({it})", last=True),
    Step("counts {it}", "len({it})", last=True),
]
KINDS = {
    "number": (NUMBER, "number value count amount size total price age weight height"),
    "text": (TEXT, "text word title line message label note"),
    "list": (LIST, "numbers values items prices sizes ages weights"),
}


class Function(NamedTuple):
    """A function: its name, what it does in words, one part a step, its code, and arguments at which its steps can be told apart."""

    name: str
    says: list[str]
    code: str
    arguments: list[Any]


def function(rng: random.Random, held_out: bool, every_value: bool = False) -> Function:
    """A function with a name, a number and a word drawn from one half.

    Args:
        rng: the source of randomness.
        held_out: which half.
        every_value: numbers and words of both halves, for the corpus: each is one token, and must have been seen to be copied.
    """
    half = None if every_value else held_out
    kind = rng.choice(list(KINDS))
    stock, parameters = KINDS[kind]
    name, parameter = draw(rng, held_out, _name), rng.choice(parameters.split())
    values = {"n": draw(rng, half, lambda r: r.randint(2, 99)), "w": draw(rng, half, lambda r: r.choice(NOUNS).capitalize())}
    steps = _steps(rng, stock)
    nouns = [f"the {parameter}", "them" if kind == "list" else "it"]
    says = [step.says.format(it=noun, **values) for step, noun in zip(steps, nouns, strict=False)]
    code = _written(name, parameter, [step.code.format(it=parameter, **values) for step in steps])
    return Function(name, says, code, [_argument(rng, kind, i, **values) for i in range(3)])


def draw(rng: random.Random, held_out: bool | None, make: Callable[[random.Random], Any]) -> Any:
    """A value of one half, or of either where that is `None`."""
    while True:
        value = make(rng)
        if held_out is None or is_held_out(value) == held_out:
            return value


def _name(rng: random.Random) -> str:
    return "_".join(rng.sample(NOUNS, 2))


def _steps(rng: random.Random, stock: list[Step]) -> list[Step]:
    """One step or two, of which the first leaves something that the second can be done to; at most one has an open value."""
    last = rng.choice(stock)
    first = [step for step in stock if not step.last and step != last and not (step.open and last.open)]
    return [rng.choice(first), last] if first and rng.random() < 0.4 else [last]


def _written(name: str, parameter: str, expressions: list[str]) -> str:
    *before, last = expressions
    return "\n".join([f"def {name}({parameter}):", *(f"    {parameter} = {one}" for one in before), f"    return {last}"])


def _argument(rng: random.Random, kind: str, i: int, n: int, w: str) -> Any:
    """The `i`-th of three: the first step's own number, or a text with its own word in it, then others on either side of that."""
    if kind == "number":
        return n + (0, 1, -1)[i] * rng.randint(1, 50)
    if kind == "text":
        return (f"{w} and {w}", f"some {rng.choice(('tea', 'rain', 'bread'))}", f"not {w}")[i]
    return [n + (0, 1, -1)[j % 3] * rng.randint(1, 50) for j in range(i, i + 3 + i)]
