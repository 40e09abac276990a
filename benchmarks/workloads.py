"""The four data sets of the rows benchmark, made up from the tiny scale's words, the same at every call.

agent        12 tools and a system prompt, about 1,500 tokens, before every conversation of 2 to 6 turns
reasoning    conversations of 4 to 8 turns under a template that leaves earlier reasoning out, so that each turn is a row of its own
answers      8 answers of 40 to 170 tokens to each question of about 600
chat         nothing in common, lengths as in chats: log-normal, median 300 tokens, at most about 2,000
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from sft_recipes import TINY, Recipe
from sft_recipes.rows import build_rows
from sft_recipes.tiny import conversations as tiny
from sft_recipes.tiny.corpus import COMMON, LEXICON
from sft_recipes.tiny.words import Words
from sft_recipes.turns import Supervisor
from sft_recipes.turns.dataset import supervise_all
from sft_recipes.weights import load_tokenizer

Talk = tuple[list[dict[str, Any]], list[dict[str, Any]] | None]  # messages and tools


def agent(words: Words) -> Iterator[list[Talk]]:
    """Calls of tools and what is said about their results, one exchange after the other."""
    house = Words(random.Random("system prompt"))
    rules = "\n".join([f"You help people in {house.name()}.", *(f"- {_prose(house, 18)}" for _ in range(14))])
    tools = [tool.schema for tool in tiny.TOOLS] + [_schema(house, name) for name in ("order_taxi", "find_hotel", "plan_visit")]
    while True:
        messages, turns = [{"role": "system", "content": rules}], words.rng.randint(2, 6)
        while left := turns - sum(message["role"] == "assistant" for message in messages):
            exchange = tiny.conversation(words)["messages"]
            messages += exchange if len(exchange) == 2 or left > 1 else []
        yield [(messages, tools)]


def reasoning(words: Words) -> Iterator[list[Talk]]:
    """Questions with a text to each, thought about and answered, under one system prompt."""
    system = {"role": "system", "content": _prose(Words(random.Random("system prompt")), 60)}
    while True:
        messages = [system]
        for _ in range(words.rng.randint(4, 8)):
            thought, answer = _prose(words, words.rng.randint(40, 110)), _prose(words, words.rng.randint(20, 60))
            asked = {"role": "user", "content": _prose(words, words.rng.randint(40, 130))}
            messages += [asked, {"role": "assistant", "reasoning_content": thought, "content": answer}]
        yield [(messages, None)]


def answers(words: Words) -> Iterator[list[Talk]]:
    """A question that brings its text, and eight answers to it."""
    while True:
        asked = {"role": "user", "content": _prose(words, 420)}
        said = [_prose(words, words.rng.randint(30, 120)) for _ in range(8)]
        yield [([asked, {"role": "assistant", "content": text}], None) for text in said]


def chat(words: Words) -> Iterator[list[Talk]]:
    """A question and its answer, or several."""
    while True:
        left, messages = min(round(words.rng.lognormvariate(5.35, 0.7)), 1400), []
        while left > 0:
            length = words.rng.randint(30, 250)
            asked, said = _prose(words, min(left, length) // 3 + 1), _prose(words, 2 * min(left, length) // 3 + 1)
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            left -= length
        yield [(messages, None)]


class Workload(NamedTuple):
    """A data set, and what is asked of it.

    Attributes:
        template: a chat template of TRL's.
        made: gives groups of conversations that belong together, forever.
        groups: in the data set.
        bar: the least ratio to TRL, in supervised tokens per second.
        step: groups in an optimiser step, on both sides.
        batch: rows in a padded micro-batch of TRL's.
        packed: packed rows of ours that a step has.
        timed: steps in a round whose time counts, after the first.
    """

    template: str
    made: Callable[[Words], Iterator[list[Talk]]]
    groups: int
    bar: float
    step: int
    batch: int
    packed: int
    timed: int


WORKLOADS = {
    "agent": Workload("qwen2_5", agent, 512, 3.0, 32, 4, 1, 1),
    "reasoning": Workload("qwen3", reasoning, 128, 2.0, 8, 4, 2, 1),
    "answers": Workload("gemma3", answers, 64, 3.0, 4, 4, 1, 1),
    "chat": Workload("gemma3", chat, 512, 1.0, 32, 4, 2, 2),
}


def rows_of(name: str, groups: int) -> tuple[Sequence[dict[str, Any]], Any]:
    """The first groups of a workload as separate rows, each turn in its served context; and the tokenizer."""
    workload = WORKLOADS[name]
    tokenizer = load_tokenizer(Recipe(model=str(TINY / "gemma3"), data="none", chat_template=workload.template))
    talks = [talk for group in islice(workload.made(Words(random.Random(name))), groups) for talk in group]
    found = supervise_all(Supervisor(tokenizer), talks)
    turns = []
    for number, each in enumerate(found, 1):
        if not isinstance(each, list):
            raise each
        turns.append((f"{name}:{number}", each))
    return build_rows(turns, None)[0], tokenizer


def _prose(words: Words, count: int) -> str:
    """So many words in sentences, with a name or a number now and then."""
    rng = words.rng
    found: list[str] = []
    while len(found) < count:
        draw = rng.random()
        word = rng.choice(LEXICON) if draw < 0.5 else rng.choice(COMMON) if draw < 0.93 else words.name()
        found.append(word)
    lines = [" ".join(found[i : i + 12]) for i in range(0, count, 12)]
    return " ".join(f"{line[0].upper()}{line[1:]}." for line in lines)


def _schema(words: Words, name: str) -> dict[str, Any]:
    """A tool that is offered and never called."""
    properties = {key: {"type": "string", "description": _prose(words, 6)} for key in ("place", "day", "hour")}
    parameters = {"type": "object", "properties": properties, "required": ["place", "day"]}
    return {"type": "function", "function": {"name": name, "description": _prose(words, 8), "parameters": parameters}}
