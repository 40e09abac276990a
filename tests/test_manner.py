"""How replies are said: their length, loops, echoes, and whether they differ."""

import random

import pytest
from rich.console import Console

from sft_recipes import RecipeError, screen
from sft_recipes.config import resolve
from sft_recipes.preflight.report import reference_warnings
from sft_recipes.prepare import prepare_held_out
from sft_recipes.run import Run, summary
from sft_recipes.scores import distinct, echoes_prompt, manner_of, repeats

PROSE = "From Jondjind to Coutbrir it is 745 kilometers by bicycle, which takes three days. Shall I book a room on the way?"
CALLS = '[{"name": "convert", "arguments": {"amount": 100000, "to": "GBP"}}, {"name": "convert", "arguments": {"amount": 2, "to": "EUR"}}]'


def slow_repeats(ids):
    """Every run of every pattern, one by one."""
    best = 0
    for p in range(1, min(128, len(ids) // 3) + 1):
        for start in range(len(ids)):
            end = start + p
            while end < len(ids) and ids[end] == ids[end - p]:
                end += 1
            if end - start >= max(3 * p, 10):
                best = max(best, end - start)
    return best / len(ids) if ids else 0.0


def slow_echo(ids, asked):
    pieces = {tuple(asked[i:j]) for i in range(len(asked)) for j in range(i + 1, len(asked) + 1)}
    sizes = [j - i for i in range(len(ids)) for j in range(i + 1, len(ids) + 1) if tuple(ids[i:j]) in pieces]
    best = max(sizes, default=0)
    return best / len(ids) if best and best >= min(5, len(asked)) else 0.0


def test_both_are_what_the_slow_way_finds():
    rng = random.Random(0)
    for _ in range(300):
        ids, asked = ([rng.randrange(rng.choice([1, 2, 4])) for _ in range(rng.randrange(40))] for _ in range(2))
        assert repeats(ids) == slow_repeats(ids)
        assert echoes_prompt(ids, asked) == slow_echo(ids, asked)


@pytest.mark.parametrize("text", [PROSE, CALLS, "It costs 1000000.", "}}}", "no no no"])
def test_prose_and_json_are_no_loops(tokenizer, text):
    assert repeats(tokenizer(text, add_special_tokens=False)["input_ids"]) <= 0.1


@pytest.mark.parametrize("pattern", [1, 2, 7, 30])
def test_a_reply_cut_in_a_loop_is_one_but_for_how_it_began(pattern):
    began, loop = list(range(100, 105)), [i % pattern for i in range(95)]
    assert repeats(began + loop) == 0.95 and repeats(loop + began) == 0.95
    assert repeats(list(range(100))) == 0.0


def test_an_echo_is_one_and_a_call_that_quotes_a_city_is_not(tokenizer):
    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    asked = "How is the weather in Therva today?"
    assert echoes_prompt(ids(asked), ids(asked)) == 1.0
    assert 0.3 < echoes_prompt(ids(f"{asked} {PROSE}"[:80]), ids(asked)) < 1.0
    assert echoes_prompt(ids('{"name": "get_weather", "arguments": {"city": "Therva"}}'), ids(asked)) < 0.3
    assert echoes_prompt(ids("Therva."), ids(asked)) <= 1.0 and echoes_prompt(ids("It is rainy."), ids(asked)) == 0.0
    assert echoes_prompt(ids("Hi"), ids("Hi")) == 1.0 and echoes_prompt([], ids("Hi")) == echoes_prompt(ids("Hi"), []) == 0.0


def test_the_stop_token_counts_for_the_length_alone():
    assert manner_of([1, 2, 3, 4, 5, 9], True, [1, 2, 3, 4, 5]) == {"length": 6.0, "repeats": 0.0, "echoes_prompt": 1.0}
    assert manner_of([7] * 12, False, []) == {"length": 12.0, "repeats": 1.0, "echoes_prompt": 0.0}
    assert manner_of([], False, []) == {"length": 0.0, "repeats": 0.0, "echoes_prompt": 0.0}


def test_distinct_is_of_the_whole_set():
    assert distinct([[1], [2], [3], [4]], [[7]] * 4) == 0.25
    assert distinct([[1], [2]], [[7], [8]]) == 1.0
    assert distinct([[1], [1]], [[7], [7]]) == 1.0 and distinct([[1], [1]], [[7], [8]]) == 1.0


def test_the_best_checkpoint_by_a_manner_is_the_one_with_less_of_it():
    def better(metric, **more):
        return resolve("gemma-tools", "tiny", metric_for_best_model=metric, **more).config.greater_is_better

    assert better("repeats") is better("eval_echoes_prompt") is better("eval_loss") is False
    assert better("distinct") is better("tool_call_exact") is better("eval_stops") is True
    assert better("repeats", greater_is_better=True) is True and better("length", greater_is_better=False) is False
    with pytest.raises(RecipeError, match="say greater_is_better"):
        better("length")


def test_a_manner_is_neither_right_nor_wrong(tmp_path):
    resolved = resolve("gemma-tools", "tiny", primary="echoes_prompt")
    prepared = prepare_held_out(resolved.trainer_class, resolved.recipe, resolved.config.max_length)
    assert reference_warnings(resolved, prepared) == []
    run = Run(tmp_path)
    sample = {
        "stage": "after",
        "source": "a.jsonl:1",
        "message_index": 1,
        "asked": "?",
        "reply": "!",
        "scores": {"repeats": 0.0, "exact": 0.5},
    }
    run.write_lines("samples.jsonl", [sample])
    for primary, right in (("repeats", None), ("exact", False), ("eval_loss", None)):
        run.write("metrics.json", {"primary": primary, "before": {}, "after": {}, "merge": {}})
        assert summary(run)["samples"][0]["right"] is right


def test_a_length_is_shown_with_one_decimal_and_less_repetition_is_better(monkeypatch):
    monkeypatch.setattr(screen, "out", Console(record=True, width=80, force_terminal=True, quiet=False))
    screen.print_scores({"exact": 0.5, "length": 24.125})
    screen.print_compared(
        {"a": {"length": 24.125, "repeats": 0.5, "distinct": 1.0}, "b": {"length": 9.0, "repeats": 0.25, "distinct": 0.5}}
    )
    plain = screen.out.export_text(clear=False, styles=False).splitlines()
    assert [line.split() for line in plain[:2]] == [["exact", "0.500"], ["length", "24.1"]] and plain[3].split() == [
        "length",
        "24.1",
        "9.0",
    ]
    lines = screen.out.export_text(styles=True).splitlines()
    assert ["\x1b[1m" in line for line in lines[3:]] == [False, True, True] and "\x1b[1m0.250" in lines[4] and "\x1b[1m1.000" in lines[5]
