"""The tiny scale's data for `lima`: talk of many kinds without tools, each question with one right answer.

Thirteen kinds of wish, each in several wordings, about names, numbers and things that the question itself brings; a third go on for
a second turn. Training and held-out talks share kinds and wordings, and no open value: see `words`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from itertools import islice

from .words import ITEMS, Words

TRAIN, HELD_OUT = 1000, 100
Turn = tuple[str, str]  # what is asked, and the one right answer


def train_talks(different: int = TRAIN) -> Iterator[dict]:
    """1,000 rows to train on, the same ones at every call; with fewer `different` ones, each stands there as often as the next."""
    rows = list(islice(talks(held_out=False), different))
    return (rows[i % different] for i in range(TRAIN))


def held_out_talks() -> Iterator[dict]:
    """100 other ones, whose names and numbers no training row has."""
    return islice(talks(held_out=True), HELD_OUT)


def talks(held_out: bool) -> Iterator[dict]:
    """Endless rows with `messages`, no two alike, and `tests`, which says that an answer is right to the letter or not at all."""
    words = Words(random.Random(f"lima {held_out}"), held_out)
    seen: set[str] = set()
    while True:
        turns = talk(words)
        if turns[0][0] not in seen:
            seen.add(turns[0][0])
            said = (zip(("user", "assistant"), turn, strict=True) for turn in turns)
            yield {"messages": [{"role": role, "content": text} for turn in said for role, text in turn], "tests": "exact"}


def talk(words: Words) -> list[Turn]:
    """One conversation, of one turn or two."""
    rng = words.rng
    turns = rng.choice(KINDS)(words)
    if len(turns) == 1 and rng.random() < 0.3:
        turns.append(_follow_up(rng, turns[0][1]))
    return turns


def _follow_up(rng: random.Random, answer: str) -> Turn:
    return rng.choice(
        [
            ("Once more, please.", answer),
            ("Can you say that again?", answer),
            ("And in quotes?", f'"{answer}"'),
            ("Thank you!", "You are welcome."),
            ("Good. That is all.", "Goodbye."),
        ]
    )


def _asked(words: Words, wordings: tuple[str, ...], answer: str, **values: object) -> list[Turn]:
    """A single turn: one of the wordings and its answer, both with the values filled in."""
    return [(words.rng.choice(wordings).format(**values), answer.format(**values))]


def _repeat(words: Words) -> list[Turn]:
    wordings = ("Repeat after me: {text}", "Say exactly this: {text}", "Copy this line: {text}", "{text}\n\nWrite that line again.")
    return _asked(words, wordings, "{text}", text=words.phrase())


def _list(words: Words) -> list[Turn]:
    names = [words.name() for _ in range(words.rng.randint(2, 4))]
    text = f"{', '.join(names[:-1])} and {names[-1]}"
    wordings = ("Make a list of {text}.", "{text}: as a list, please.", "Put {text} on lines of their own.", "I need a list: {text}.")
    return [(words.rng.choice(wordings).format(text=text), "\n".join(f"- {name}" for name in names))]


def _place_in_list(words: Words) -> list[Turn]:
    names = [words.name() for _ in range(words.rng.randint(2, 4))]
    which, index = words.rng.choice([("first", 0), ("last", -1)])
    wordings = ("Which name is {which} here: {names}?", "{names}. Who comes {which}?", "Of {names}, give me the {which} one.")
    return _asked(words, wordings, f"{names[index]}.", names=", ".join(names), which=which)


def _member(words: Words) -> list[Turn]:
    names = [words.name() for _ in range(3)]
    there = words.rng.random() < 0.5
    who = words.rng.choice(names) if there else words.name()
    wordings = ("Is {who} one of {names}?", "Here are {names}. Is {who} among them?", "{names}: do you see {who}?")
    return _asked(words, wordings, "Yes, {who} is." if there else "No, {who} is not.", who=who, names=", ".join(names))


def _swap(words: Words) -> list[Turn]:
    wordings = ("Swap {one} and {other}.", "Turn these two round: {one} and {other}", "{one} and {other}, the other way round?")
    return _asked(words, wordings, "{other} and {one}", one=words.name(), other=words.name())


def _join(words: Words) -> list[Turn]:
    names = [words.name() for _ in range(words.rng.randint(2, 3))]
    sign, called = words.rng.choice([("-", "dashes"), ("/", "slashes"), (" + ", "plus signs"), ("; ", "semicolons")])
    wordings = ("Join {names} with {called}.", "Put {called} between {names}.", "{names}, please with {called} between them.")
    return _asked(words, wordings, sign.join(names), names=" ".join(names), called=called)


def _question(words: Words) -> list[Turn]:
    who, where, item, price = words.name(), words.name(), words.rng.choice(ITEMS), words.amount()
    said, asked = words.rng.choice(
        [
            (f"{who} lives in {where}.", f"Does {who} live in {where}?"),
            (f"{who} sells a {item}.", f"Does {who} sell a {item}?"),
            (f"{who} has paid {price}.", f"Has {who} paid {price}?"),
            (f"The {item} is for {who}.", f"Is the {item} for {who}?"),
        ]
    )
    return _asked(
        words, ("Make this a question: {said}", "{said} How would one ask that?", "Turn into a question: {said}"), asked, said=said
    )


def _note(words: Words) -> list[Turn]:
    wordings = (
        "Write to {who} that the {item} comes at {hour}.",
        "A note for {who}: {item}, {hour}.",
        "Tell {who} in a note: {item} at {hour}.",
    )
    answer = "Dear {who}, your {item} comes at {hour}. Kind regards."
    return _asked(words, wordings, answer, who=words.name(), item=words.rng.choice(ITEMS), hour=words.hour())


def _fill_in(words: Words) -> list[Turn]:
    wordings = (
        "Fill in {who}: I met ___ in {where}.",
        "I met ___ in {where}. The gap is {who}.",
        "Replace ___ by {who}: I met ___ in {where}.",
    )
    return _asked(words, wordings, "I met {who} in {where}.", who=words.name(), where=words.name())


def _record(words: Words) -> dict[str, object]:
    values: dict[str, Callable[[], object]] = {"owner": words.name, "city": words.name, "price": words.amount, "date": words.day}
    return {key: values[key]() for key in words.rng.sample(sorted(values), words.rng.randint(1, 3))}


def _spoken(record: dict[str, object]) -> str:
    *parts, last = (f"the {key} is {value}" for key, value in record.items())
    text = f"{', '.join(parts)} and {last}" if parts else last
    return f"T{text[1:]}."


def _record_in_words(words: Words) -> list[Turn]:
    record = _record(words)
    wording = words.rng.choice(("Put this into words: {}", "{}\n\nSay that in a sentence.", "What does this record say? {}"))
    return [(wording.format(json.dumps(record)), _spoken(record))]


def _words_as_record(words: Words) -> list[Turn]:
    record = _record(words)
    wording = words.rng.choice(("As JSON: {}", "{} Write that as JSON.", "Give me a JSON record. {}"))
    return [(wording.format(_spoken(record)), json.dumps(record))]


def _story(words: Words) -> list[Turn]:
    """A few facts, and a question about one of them, or about two, one after the other."""
    who, where, friend, item, rng = words.name(), words.name(), words.name(), words.rng.choice(ITEMS), words.rng
    count, price, hour = words.integer(), words.amount(), words.hour()
    facts = [
        (f"{who} lives in {where}.", f"Where does {who} live?", f"In {where}."),
        (f"{who} has {count} {item}s.", f"How many {item}s does {who} have?", f"{count}."),
        (f"One {item} costs {price}.", f"What does one {item} cost?", f"{price}."),
        (f"{who} meets {friend} at {hour}.", f"Whom does {who} meet?", f"{friend}."),
        (f"The train leaves at {hour}.", "When does the train leave?", f"At {hour}."),
    ]
    chosen = rng.sample(facts, rng.randint(2, 3))
    text = " ".join(fact for fact, _, _ in chosen)
    (_, first, answer), *more = rng.sample(chosen, rng.choice((1, 1, 2)))
    wording = rng.choice(("{text} {asked}", "{text}\n\n{asked}", "Read this. {text} {asked}", "{asked} Here is what I know: {text}"))
    return [(wording.format(text=text, asked=first), answer), *((asked, right) for _, asked, right in more)]


def _greeting(words: Words) -> list[Turn]:
    wording, answer = words.rng.choice(
        [
            ("Hello, I am {name}.", "Hello {name}, how can I help?"),
            ("Good morning from {name}!", "Good morning, {name}."),
            ("My name is {name}. What is my name?", "Your name is {name}."),
            ("{name} says goodbye.", "Goodbye, {name}."),
            ("Wish {name} a good night.", "Good night, {name}."),
        ]
    )
    return _asked(words, (wording,), answer, name=words.name())


KINDS: tuple[Callable[[Words], list[Turn]], ...] = (
    _repeat,
    _list,
    _place_in_list,
    _member,
    _swap,
    _join,
    _question,
    _note,
    _fill_in,
    _record_in_words,
    _words_as_record,
    _story,
    _greeting,
)
