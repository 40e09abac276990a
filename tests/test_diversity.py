"""The Vendi score against its definition done slowly, its limits, and when a person is warned."""

import math
import random
from itertools import pairwise

import numpy as np
import pytest

from sft_recipes.preflight import diversity
from sft_recipes.preflight.diversity import measure, vendi

WORDS = [f"{a}{b}" for a in ("north", "south", "over", "under") for b in ("ward", "side", "land", "where", "hill")]


def story(seed, length=12):
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def chat(asked, answered="Yes."):
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]}


def by_the_book(texts):
    """Definition 3.1 of the paper: the exponential of the entropy of the eigenvalues of K/n, in float64, every pair on its own."""

    def features(text):
        words = text.split()
        return {*words, *pairwise(words)}

    sets = [features(text) for text in texts]
    kernel = [[len(a & b) / math.sqrt(len(a) * len(b)) for b in sets] for a in sets]
    values = [value for value in np.linalg.eigvalsh(np.array(kernel) / len(texts)) if value > 1e-12]
    return math.exp(-sum(value * math.log(value) for value in values))


def test_it_is_what_the_definition_gives():
    texts = [story(i % 30, 4 + i % 9) for i in range(60)]
    assert 10 < by_the_book(texts) < 50 and vendi(texts) == pytest.approx(by_the_book(texts), rel=1e-3)


def test_its_limits():
    strangers = [f"{i}a {i}b {i}c" for i in range(40)]
    assert vendi(strangers) == pytest.approx(40, rel=1e-3)
    assert vendi([story(0)] * 40) == pytest.approx(1, rel=1e-3)
    assert vendi(strangers[:8] * 5) == pytest.approx(8, rel=1e-3)
    assert vendi(["one two"]) == pytest.approx(1) and vendi([]) == 0.0


def test_order_case_and_punctuation_do_not_matter():
    texts = [story(i) for i in range(50)]
    mixed = [f"{text.upper()}!" for text in random.Random(1).sample(texts, 50)]
    assert vendi(mixed) == pytest.approx(vendi(texts), rel=1e-3)


def test_texts_without_words_are_alike_and_those_without_spaces_have_words():
    assert vendi(["", "?!", "\n", "🙂"]) == pytest.approx(1)
    assert 1.2 < vendi(["東京の天気を教えて", "東京の時間を教えて"]) < 1.9


def test_a_template_with_many_names_is_a_few_and_neither_side_counts_for_the_other():
    found = measure([chat(f"What is the weather in {story(i, 1)}{i} today?", story(i)) for i in range(300)])
    assert found.prompts < 10 and found.replies > 50
    assert found.openings.most_common() == [("what is", 300)]


def test_both_sides_are_read_whole_calls_and_empty_messages_included():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}]}
    talk = {"messages": [*chat("Hi", "Hello")["messages"], {"role": "user", "content": "There?"}, call, {"role": "tool", "content": "7"}]}
    assert diversity.said(talk, "user") == "Hi There?"
    said = diversity.said(talk, "assistant")
    assert said.startswith("Hello ") and "weather" in said and "Oslo" in said and "7" not in said


def test_at_most_a_thousand_evenly_chosen_are_compared(monkeypatch):
    monkeypatch.setattr(diversity, "COMPARED", 10)
    talks = [chat(f"{i}") for i in range(95)]
    assert [c["messages"][0]["content"] for c in diversity.spread(talks)] == [str(i) for i in (0, 9, 19, 28, 38, 47, 57, 66, 76, 85)]
    found = measure(talks)
    assert (found.conversations, found.compared, found.as_dict()["prompts"]) == (95, 10, 10.0)


def test_few_wishes_said_over_and_over_are_warned_about_and_no_others():
    def warned(count, different):
        return measure([chat(f"{i % different}a {i % different}b") for i in range(count)]).warnings()

    (line,) = warned(400, 10)
    assert line.startswith("400 training prompts say what 10 different ones would (Vendi score): ")
    (line,) = measure([chat(f"Please say {i}") for i in [*range(4)] * 50]).warnings()
    assert "(Vendi score); 200 begin with 'please say': " in line
    assert not warned(400, 100) and not warned(80, 2) and not measure([]).warnings()


def test_many_conversations_may_drill_one_task(monkeypatch):
    monkeypatch.setattr(diversity, "MANY", 399)
    assert not measure([chat("Once more.")] * 400).warnings()
