"""The pre-training text of the tiny Llama: small Python functions with comments and docstrings, pages about them, and copying.

Generated documents, each a few lines. The base learns how a description becomes code, and to copy names, numbers and words; it has
never seen anybody ask for a function, nor a turn of a conversation.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from .corpus import COMMON
from .functions import NOUNS, Function, function


def documents(seed: int) -> Iterator[str]:
    """An endless, reproducible stream of documents."""
    rng = random.Random(seed)
    shapes: list[Callable[[random.Random], str]] = [_documented, _documented, _page, _page, _module, _copy]
    while True:
        yield rng.choice(shapes)(rng)


def _made(rng: random.Random) -> Function:
    return function(rng, held_out=False, every_value=True)


def _sentence(rng: random.Random, made: Function) -> str:
    """What it does, as a line of documentation would say it: `Adds 7 to the price, then multiplies it by 12.`"""
    return rng.choice((" and then ", ", then ", "; ", " and then ")).join(made.says)


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _with_docstring(rng: random.Random, made: Function) -> str:
    head, *body = made.code.split("\n")
    return "\n".join([head, f'    """{_capital(_sentence(rng, made))}"""', *body])


def _documented(rng: random.Random) -> str:
    """One to three functions, each with a docstring or a comment above it."""
    parts = []
    for _ in range(rng.randint(1, 3)):
        made, said = _made(rng), rng.random()
        if said < 0.1:
            parts.append(_with_docstring(rng, made))
        else:
            comment = _sentence(rng, made)
            parts.append(f"# {made.name} {comment}\n{made.code}" if said < 0.9 else f"# {_capital(comment)}\n{made.code}")
    return "\n\n".join(parts)


def _page(rng: random.Random) -> str:
    """A page on one function or several: its name as a heading or in a sentence, then its code between fences."""
    parts = []
    for _ in range(rng.randint(1, 2)):
        made = _made(rng)
        heads = (f"# {made.name}\n\n{_capital(_sentence(rng, made))}", f"The function {made.name} {_sentence(rng, made)}:")
        parts.append(f"{rng.choice(heads)}\n\n```python\n{made.code}\n```")
    return "\n\n".join(parts)


def _module(rng: random.Random) -> str:
    """What several functions do, then the code of each, perhaps in another order."""
    made = [_made(rng) for _ in range(rng.randint(2, 3))]
    said = [f"# {one.name}: {_sentence(rng, one)}" for one in made]
    rng.shuffle(made)
    return "\n".join(said) + "\n\n" + "\n\n".join(one.code for one in made)


def _copy(rng: random.Random) -> str:
    """A line of names, numbers and plain words, three or four times."""
    parts = [rng.choice((_made(rng).name, str(rng.randint(2, 99)), rng.choice(NOUNS).capitalize())) for _ in range(rng.randint(2, 5))]
    parts += rng.sample(COMMON, rng.randint(0, 3))
    rng.shuffle(parts)
    return "\n".join([rng.choice((" ", " ", ", ")).join(parts)] * rng.randint(3, 4))
