"""The pre-training text of the tiny base: copying, names, numbers and JSON.

Generated documents, each a few lines. None is a conversation, none holds a turn marker, and the functions in them are
invented on the spot (`measure_basket`, `dorvel`): the base learns what JSON, schemas and names look like and how to copy
them, and has never seen a question of the recipe's data.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from .words import ITEMS, Words

VERBS = "measure paint lift open close count fetch clean move store check rent send find".split()
KEYS = "person city item size price count owner date time code place color height weight note from to kind mode level".split()
COLORS = "red blue green white black yellow brown".split()
COMMON = (
    "the of and to in is on for with at from a an it you he she they we was are has what how which when who please can could "
    "will would not no yes done here there good this that one two three more some any all new old"
).split()


def documents(seed: int) -> Iterator[str]:
    """An endless, reproducible stream of documents."""
    rng = random.Random(seed)
    words = Words(rng)
    shapes = [_copy, _record, _record, _use_function, _use_function, _use_function, _story, _story, _describe]
    while True:
        yield rng.choice(shapes)(rng, words)


def _value(rng: random.Random, words: Words) -> object:
    draw = rng.choice(
        (words.name, words.name, words.title, words.integer, words.integer, words.amount, words.hour, words.day, words.symbol, words.phrase)
    )
    return draw()


def _copy(rng: random.Random, words: Words) -> str:
    parts = [str(_value(rng, words)) for _ in range(rng.randint(1, 4))] + rng.sample(COMMON, rng.randint(0, 4))
    rng.shuffle(parts)
    text = " ".join(parts)
    return "\n".join([text] * rng.randint(2, 3))


def _fields(rng: random.Random, words: Words, keys: list[str]) -> dict[str, object]:
    return {key: _value(rng, words) for key in keys}


def _spoken(rng: random.Random, fields: dict[str, object]) -> str:
    """Fields in words, in any order: `the price is 41.25, city Velmora and the owner is Tarin`."""
    items = list(fields.items())
    rng.shuffle(items)
    forms = ("the {} is {}", "{} {}", "{}: {}", "{} is {}", "the {} {}")
    parts = [rng.choice(forms).format(key.replace("_", " "), value) for key, value in items]
    return ", ".join(parts[:-1]) + (rng.choice((" and ", ", ")) if len(parts) > 1 else "") + parts[-1]


def _record(rng: random.Random, words: Words) -> str:
    """A sentence and the same facts as JSON, one or several records, either way round."""
    keys = rng.sample(KEYS, rng.randint(1, 4))
    records = [_fields(rng, words, keys) for _ in range(rng.choice((1, 1, 2, 3)))]
    spoken = "; ".join(_spoken(rng, record) for record in records)
    written = "\n".join(json.dumps(record) for record in records)
    return f"{spoken}\n{written}" if rng.random() < 0.7 else f"{written}\n{spoken}"


def _type(value: object) -> str:
    return {str: "string", int: "integer", float: "number"}[type(value)]


def _function(rng: random.Random, words: Words) -> tuple[str, str, dict[str, object], dict]:
    """An invented function: its name, what it does, one set of arguments, and its JSON schema."""
    verb, thing = rng.choice(VERBS), rng.choice(ITEMS + KEYS)
    name = f"{verb}_{thing}" if rng.random() < 0.7 else words.name().lower()
    purpose = f"{verb} a {thing}" if rng.random() < 0.7 else f"{verb} the {rng.choice(COLORS)} {thing}"
    arguments = _fields(rng, words, rng.sample(KEYS, rng.randint(1, 3)))
    properties = {key: {"type": _type(value)} for key, value in arguments.items()}
    schema = {
        "name": name,
        "description": f"{purpose.capitalize()}.",
        "parameters": {"type": "object", "properties": properties, "required": list(arguments)},
    }
    return name, purpose, arguments, schema


def _use_function(rng: random.Random, words: Words) -> str:
    """Schemas, a wish in words, and the JSON that fulfils it; sometimes two at once."""
    functions = [_function(rng, words) for _ in range(rng.randint(1, 3))]
    chosen = rng.sample(functions, 1 if rng.random() < 0.8 else min(2, len(functions)))
    listing = "\n".join(json.dumps(schema) for *_, schema in functions)
    wishes = []
    for name, purpose, arguments, _ in chosen:
        wish, link = rng.choice((purpose, f"use {name}", f"{name}", f"{purpose} now")), rng.choice((": ", " where ", ", ", " with "))
        wishes.append(wish + link + _spoken(rng, arguments))
    result = "\n".join(json.dumps({"name": name, "arguments": arguments}) for name, _, arguments, _ in chosen)
    return f"{listing}\n{' and then '.join(wishes)}\n{result}"


def _story(rng: random.Random, words: Words) -> str:
    """A few facts in prose, then some of them again."""
    who, where, count, item, price = words.name(), words.name(), words.integer(), rng.choice(ITEMS), words.amount()
    facts = [
        (f"{who} lives in {where}.", f"Where does {who} live? In {where}."),
        (f"{who} has {count} {item}s.", f"How many {item}s does {who} have? {count}."),
        (f"One {item} costs {price}.", f"What does one {item} cost? {price}."),
        (f"The train leaves {where} at {(hour := words.hour())}.", f"When does the train leave {where}? At {hour}."),
        (f"Today {who} told {(friend := words.name())}: {(said := words.phrase())}.", f"What did {who} tell {friend}? {said}."),
    ]
    chosen = rng.sample(facts, rng.randint(2, 4))
    asked = rng.sample(chosen, rng.randint(1, len(chosen)))
    return " ".join(fact for fact, _ in chosen) + "\n" + "\n".join(question for _, question in asked)


def _describe(rng: random.Random, words: Words) -> str:
    """JSON, then one or two of its fields in a sentence."""
    fields = _fields(rng, words, rng.sample(KEYS, rng.randint(2, 4)))
    chosen = dict(rng.sample(list(fields.items()), rng.randint(1, 2)))
    return f"{json.dumps(fields)}\nHere {_spoken(rng, chosen)}."
