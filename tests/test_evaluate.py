"""Generations: batched and padded as alone, halting at the stop tokens; a conversation scores as its worst turn."""

import pytest
import torch

from sft_recipes import evaluate
from sft_recipes.evaluate import Question, Sample, generate, judge, scores

PROMPTS = [[2, 50, 60, 70], [2, 80], [2, 90, 91, 92, 93, 94, 95, 96, 97, 98, 99], [2, 40, 41]]


def alone(model, prompt, count):
    """The slow obvious way: one prompt, no cache, no padding, one argmax at a time."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
    return ids[len(prompt) :]


def test_batched_generations_equal_those_alone(small_gemma):
    expected = [alone(small_gemma, prompt, 12) for prompt in PROMPTS]
    assert generate(small_gemma, PROMPTS, {2047}, 0, 12, batch_size=3) == expected


def test_it_halts_at_any_stop_token_and_keeps_it(small_gemma):
    free = alone(small_gemma, PROMPTS[0], 12)
    stop = free[4]
    (reply,) = generate(small_gemma, PROMPTS[:1], {stop, 2047}, 0, 12)
    assert reply == free[: free.index(stop) + 1]


def test_padding_after_an_early_stop_is_cut_off(small_gemma):
    free = [alone(small_gemma, prompt, 12) for prompt in PROMPTS]
    replies = generate(small_gemma, PROMPTS, {free[0][1]}, 0, 12)
    assert all(reply == f[: len(reply)] for reply, f in zip(replies, free, strict=True))
    assert len(replies[0]) <= 2


@pytest.mark.parametrize("first", [1, 2, 5, 12])
def test_rounds_change_no_reply(small_gemma, monkeypatch, first):
    """Who has stopped leaves after a round, who has not goes on from where it was."""
    monkeypatch.setattr(evaluate, "ROUND", first)
    free = [alone(small_gemma, prompt, 12) for prompt in PROMPTS]
    stops = {free[0][3], free[1][7], 2047}
    expected = [f[: next((i for i, token in enumerate(f) if token in stops), 11) + 1] for f in free]
    assert generate(small_gemma, PROMPTS, stops, 0, 12, batch_size=3) == expected
    assert {len(reply) for reply in expected} > {12}  # some stop, some do not
    assert list(evaluate._rounds(12)) == {1: [1, 2, 4, 5], 2: [2, 4, 6], 5: [5, 7], 12: [12]}[first]


def test_generation_leaves_the_model_in_the_mode_it_had(small_gemma):
    small_gemma.train()
    generate(small_gemma, PROMPTS[:1], {2047}, 0, 2)
    assert small_gemma.training


def sample(source, index, **values):
    return Sample(Question(source, index, "?", [1], {}), [1], {}, values)


def test_a_conversation_scores_as_its_worst_turn():
    samples = [sample("a:1", 1, exact=1.0), sample("a:1", 3, exact=0.0), sample("a:2", 1, exact=1.0), sample("a:2", 3, exact=1.0)]
    assert scores(samples) == {"exact": 0.5, "distinct": 1.0}


def test_judge_always_says_whether_the_turn_stopped(tokenizer):
    stop = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    ids = tokenizer("Hello.", add_special_tokens=False)["input_ids"]
    questions = [Question("a:1", 1, "?", [1], {"content": "Hello."})] * 2
    exact = lambda reply, expected: {"same": float(reply["content"] == expected["content"])}  # noqa: E731
    samples = judge(questions, [[*ids, stop], ids], tokenizer, {stop}, exact)
    manner = {"repeats": 0.0, "echoes_prompt": 0.0}
    assert [s.scores for s in samples] == [
        {"same": 1.0, "stops": 1.0, "length": len(ids) + 1, **manner},
        {"same": 1.0, "stops": 0.0, "length": len(ids), **manner},
    ]


def test_the_parts_of_a_score_follow_it():
    samples = [sample("a:1", 1, exact=1.0, exact_4_terms=1.0, stops=1.0), sample("a:2", 1, exact=0.0, exact_3_terms=0.0, stops=1.0)]
    assert list(scores(samples)) == ["exact", "exact_3_terms", "exact_4_terms", "stops", "distinct"]
    assert scores(samples)["exact_3_terms"] == 0.0 and scores(samples)["exact_4_terms"] == 1.0


def test_a_conversation_has_the_mean_length_and_the_most_repeats_of_its_turns(tokenizer):
    asked = tokenizer("How are you today, my friend?", add_special_tokens=False)["input_ids"]
    questions = [Question("a:1", i, "?", [i], {}, "How are you today, my friend?") for i in (1, 3)]
    samples = judge(questions, [[5] * 20, asked], tokenizer, {1}, lambda reply, expected: {"exact": 1.0})
    found = scores(samples, eval_loss=0.5)
    assert list(found) == ["exact", "stops", "eval_loss", "length", "repeats", "echoes_prompt", "distinct"]
    assert list(found.values()) == [1.0, 0.0, 0.5, (20 + len(asked)) / 2, 1.0, 1.0, 1.0]


def test_a_recipe_that_scores_a_length_of_its_own_keeps_it(tokenizer):
    own = iter([1.0, 0.0])
    questions = [Question("a:1", 1, "?", [1], {}), Question("a:1", 3, "?", [2], {})]
    samples = judge(questions, [[5], [6]], tokenizer, {1}, lambda reply, expected: {"length": next(own), "distinct": 0.25})
    assert scores(samples) == {"length": 0.0, "distinct": 0.25, "stops": 0.0, "repeats": 0.0, "echoes_prompt": 0.0}
    assert samples[0].manner == {"repeats", "echoes_prompt"}


def test_the_same_prompt_twice_is_one_prompt(tokenizer):
    questions = [Question(f"a:{i}", 1, "?", [i // 2], {}) for i in range(8)]
    samples = judge(questions, [[5]] * 8, tokenizer, {1}, lambda reply, expected: {})
    assert scores(samples)["distinct"] == 0.25
