"""The pre-training text of the tiny base: copying, names, numbers and JSON.

Generated documents, each a few lines. None is a conversation and the functions in them are made up on the spot from two
random words (`lamp_weather`, `dorvel`): the base learns what JSON, schemas and names look like, how to copy any of them,
and that a page between turn markers ends with one. It has never seen a role, a question or a tool of the recipe's data.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

from .words import ITEMS, Words

COLORS = "red blue green white black yellow brown".split()
COMMON = (
    "the of and to in is on for with at from a an it you he she they we was are has what how which when who please can could "
    "will would not no yes done here there good this that one two three more some any all new old by my your today now"
).split()
LEXICON = (
    "account address alarm album amount animal answer apple artist autumn bank beach bird birthday board boat body bread bridge "
    "brother building bus business calendar camera car card cat center chance change child church circle city class clear cloud "
    "cloudy coat code coffee color company computer corner cost country course cousin create currency date daughter day degrees "
    "dentist desk destination dinner direction doctor dog door dream dress driver ear earth egg end event evening exam eye face "
    "family farm father field film find finger fire fish flight floor flower food foot forest friend fruit game garden get girl "
    "glass gold grass group guest guests hair hall hand hat head heart hill history home horse hospital hotel hour house idea "
    "island item job journey key kilometers king kitchen lake land language leaf leg letter level library light line lion list "
    "lunch machine mail map market meal meat meeting member message metal milk mind minute minutes mode model money month moon "
    "morning mother mountain mouth movie music name nation neck night noon nose note number object ocean office oil order origin "
    "page paint pair paper parent park party path people person phone photo picture piece pilot place plan plane plant plate play "
    "playing poem point police pool port potato power price prize problem put quantity question queen radio rain rainy restaurant "
    "result rice ring river road rock roof room rose route row rule salt sand school science sea season seat seed send sent set "
    "share sheep ship shirt shoe shop show sister size sky sleep smile snow song sound source space spoon spring square stage star "
    "station step stock stone store story street student sugar summer sun symbol system table tail target taxi teacher team "
    "temperature test text theater thing ticket time timer tired title tooth top tower town trade train tree trip truck uncle unit "
    "valley value village visit voice wall war watch water wave weather week weight wind window winter woman wood word work world "
    "writer year ends table booked created converted price answer call called tool tools result results arguments name"
).split()


def documents(seed: int) -> Iterator[str]:
    """An endless, reproducible stream of documents; a third of them are pages between turn markers."""
    rng = random.Random(seed)
    words = Words(rng)
    shapes: list[Callable[[random.Random, Words], list[str]]]
    shapes = [_copy, _copy, _record, _record, _use_function, _use_function, _use_function, _use_function, _story, _describe]
    while True:
        parts = rng.choice(shapes)(rng, words)
        yield _pages(rng, parts) if rng.random() < 0.35 else "\n".join(parts)


def _pages(rng: random.Random, parts: list[str]) -> str:
    """Each part a page of its own, headed by a random word."""
    heads = rng.sample([word for word in LEXICON if word != "model"], 2)
    return "".join(f"<start_of_turn>{heads[i % 2]}\n{part}<end_of_turn>\n" for i, part in enumerate(parts))


def _value(rng: random.Random, words: Words) -> object:
    name = words.name
    draw = rng.choice(
        (name, name, words.title, words.integer, words.integer, words.amount, words.hour, words.day, words.symbol, words.phrase)
    )
    return draw()


def _key(rng: random.Random, words: Words) -> str:
    return rng.choice(LEXICON) if rng.random() < 0.7 else words.name().lower()


def _keys(rng: random.Random, words: Words, count: int) -> list[str]:
    return list(dict.fromkeys(_key(rng, words) for _ in range(count)))


def _copy(rng: random.Random, words: Words) -> list[str]:
    """A line of anything, two or three times."""
    parts = [str(_value(rng, words)) for _ in range(rng.randint(1, 4))]
    parts += rng.sample(COMMON, rng.randint(0, 3)) + rng.sample(LEXICON, rng.randint(0, 5))
    rng.shuffle(parts)
    return [rng.choice((" ", " ", "_", ", ", '": "')).join(parts)] * rng.randint(2, 3)


def _fields(rng: random.Random, words: Words, keys: list[str]) -> dict[str, object]:
    return {key: _value(rng, words) for key in keys}


def _spoken(rng: random.Random, fields: dict[str, object]) -> str:
    """Fields in words: named in any order, `price is 41.25 and the owner Tarin`, or only their values in theirs."""
    items = list(fields.items())
    if rng.random() < 0.4:
        fill = rng.sample(COMMON, len(items) + 1)
        return " ".join(f"{word} {value}" for word, (_, value) in zip(fill, items, strict=False))
    rng.shuffle(items)
    forms = ("the {} is {}", "{} {}", "{}: {}", "{} is {}", "the {} {}")
    parts = [rng.choice(forms).format(key, value) for key, value in items]
    return ", ".join(parts[:-1]) + (rng.choice((" and ", ", ")) if len(parts) > 1 else "") + parts[-1]


def _record(rng: random.Random, words: Words) -> list[str]:
    """A sentence and the same facts as JSON, one or several records, either way round."""
    keys = _keys(rng, words, rng.randint(1, 4))
    records = [_fields(rng, words, keys) for _ in range(rng.choice((1, 1, 2, 3)))]
    parts = ["; ".join(_spoken(rng, record) for record in records), "\n".join(json.dumps(record) for record in records)]
    return parts if rng.random() < 0.7 else parts[::-1]


def _typed(rng: random.Random, words: Words, value: object) -> dict[str, object]:
    """The JSON schema of a value; now and then a text is one of a list."""
    if isinstance(value, str) and " " not in value and rng.random() < 0.2:
        others = [value, *(rng.choice((words.name(), rng.choice(LEXICON), words.symbol()[:3])) for _ in range(rng.randint(1, 4)))]
        rng.shuffle(others)
        return {"type": "string", "enum": others}
    return {"type": {str: "string", int: "integer", float: "number"}[type(value)]}


def _function(rng: random.Random, words: Words) -> tuple[list[str], dict[str, object], dict]:
    """An invented function: ways to name what it does, one set of arguments, and its JSON schema."""
    verb, thing = _key(rng, words), _key(rng, words)
    if verb in ("get", "set", "send", "find", "play", "create", "convert", "book"):
        verb, thing = thing, verb  # `weather_get`: never a tool of the recipe's
    name = f"{verb}_{thing}" if rng.random() < 0.8 else thing
    purpose = f"{verb} {rng.choice(('a', 'the', 'some'))} {thing} {rng.choice(COMMON)} {rng.choice(('a', 'the'))} {rng.choice(LEXICON)}"
    arguments = _fields(rng, words, _keys(rng, words, rng.randint(1, 3)))
    schema = {
        "name": name,
        "description": f"{purpose.capitalize()}.",
        "parameters": {
            "type": "object",
            "properties": {key: _typed(rng, words, value) for key, value in arguments.items()},
            "required": list(arguments),
        },
    }
    return [name, f"{verb} {thing}", purpose, thing, f"{thing} {rng.choice(COMMON)} {verb}"], arguments, schema


def _use_function(rng: random.Random, words: Words) -> list[str]:
    """Schemas, a wish in words, and the JSON that fulfils it; sometimes one function twice."""
    functions = [_function(rng, words) for _ in range(rng.randint(1, 3))]
    namings, arguments, schema = rng.choice(functions)
    uses = [arguments]
    if rng.random() < 0.3:
        uses.append({key: _value(rng, words) for key in arguments})
    wishes = []
    for use in uses:
        said = [rng.choice(namings), rng.choice((": ", " where ", ", ", " with ", " ")), _spoken(rng, use)]
        wishes.append("".join(said) if rng.random() < 0.7 else f"{said[2]} {said[0]}")
    listing = "\n".join(json.dumps(schema) for *_, schema in functions)
    calls = "\n".join(json.dumps({"name": schema["name"], "arguments": use}) for use in uses)
    return [f"{listing}\n\n{' And: '.join(wishes)}.", calls]


def _story(rng: random.Random, words: Words) -> list[str]:
    """A few facts in prose, then some of them again."""
    who, where, count, item, price = words.name(), words.name(), words.integer(), rng.choice(ITEMS), words.amount()
    hour, friend, said, thing = words.hour(), words.name(), words.phrase(), rng.choice(LEXICON)
    facts = [
        (f"{who} lives in {where}.", f"Where does {who} live? In {where}."),
        (f"{who} has {count} {item}s.", f"How many {item}s does {who} have? {count}."),
        (f"One {item} costs {price}.", f"What does one {item} cost? {price}."),
        (f"The {thing} leaves {where} at {hour}.", f"When does the {thing} leave {where}? At {hour}."),
        (f"Today {who} told {friend}: {said}.", f"What did {who} tell {friend}? {said}."),
    ]
    chosen = rng.sample(facts, rng.randint(2, 4))
    asked = rng.sample(chosen, rng.randint(1, len(chosen)))
    return [" ".join(fact for fact, _ in chosen), "\n".join(question for _, question in asked)]


def _describe(rng: random.Random, words: Words) -> list[str]:
    """JSON, then one or two of its fields in a sentence."""
    fields = _fields(rng, words, _keys(rng, words, rng.randint(2, 4)))
    chosen = dict(rng.sample(list(fields.items()), rng.randint(1, min(2, len(fields)))))
    return [json.dumps(fields), f"{rng.choice(COMMON).capitalize()} {_spoken(rng, chosen)}."]
