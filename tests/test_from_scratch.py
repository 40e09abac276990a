"""The two recipes that train from scratch: their alphabets, rows and scores; a base without weights, drawn from the seed."""

import itertools

import pytest
import torch
from transformers import AutoTokenizer

from sft_recipes import TINY, RecipeError, build_trainer, load_recipe
from sft_recipes.config import resolve
from sft_recipes.evaluate import generate
from sft_recipes.prepare import prepare
from sft_recipes.rows import IGNORED
from sft_recipes.run import Run
from sft_recipes.weights import load_base, load_tokenizer

RECIPES = {"reverse-words": ("letters", 29), "chain-of-thought": ("sums", 18)}


@pytest.fixture(scope="module", params=RECIPES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def prepared(name):
    resolved = resolve(name)
    return prepare(resolved.trainer_class, resolved.recipe, resolved.config.max_length)


def test_each_character_is_a_token_and_there_is_no_other(name):
    folder, size = RECIPES[name]
    tokenizer = AutoTokenizer.from_pretrained(TINY / folder)
    characters = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    assert len(tokenizer) == size == len(set(characters)) and all(len(character) == 1 for character in characters)
    text = "".join(characters)
    assert tokenizer(text)["input_ids"] == list(range(size)) and tokenizer.decode(range(size)) == text


def test_the_tokenizer_of_a_run_adds_nothing_and_the_base_has_no_weights(name):
    folder, size = RECIPES[name]
    assert len(load_tokenizer(resolve(name).recipe)) == size
    assert sorted(file.name for file in (TINY / folder).iterdir()) == ["config.json", "tokenizer.json", "tokenizer_config.json"]


def test_the_files_are_those_that_the_script_writes(name, tmp_path, monkeypatch):
    from sft_recipes.tiny import scratch

    monkeypatch.setattr(scratch, "__file__", str(tmp_path / "scratch.py"))
    scratch.main()
    for file in (TINY / RECIPES[name][0]).iterdir():
        written = (tmp_path / RECIPES[name][0] / file.name).read_text()
        assert written == file.read_text(), file


def test_the_completion_and_its_stop_token_carry_the_loss_and_nothing_else(name, prepared):
    for row, turns in itertools.islice(zip(prepared.train.rows, prepared.train.turns, strict=True), 50):
        text = prepared.tokenizer.decode(row["input_ids"])
        learned = prepared.tokenizer.decode([label for label in row["labels"] if label != IGNORED])
        question, answer = text.split(">")
        assert learned == answer and learned.endswith("#") and len(turns) == 1
        assert row["labels"] == [IGNORED] * (len(question) + 1) + row["input_ids"][len(question) + 1 :]


def test_what_a_row_says_is_right(name, prepared):
    for row in prepared.train.rows[:200]:
        question, answer = prepared.tokenizer.decode(row["input_ids"]).removeprefix("<").removesuffix("#").split(">")
        if name == "reverse-words":
            assert answer == question[::-1] and question.isalpha()
            continue
        steps, total = answer.removeprefix("{").split("}")
        assert int(total) == sum(map(int, question.split("+"))) and steps.count(";") == question.count("+") - 1
        for step in steps.split(";"):
            left, right = step.split("=")
            assert sum(map(int, left.split("+"))) == int(right)


def test_nothing_held_out_is_trained_on_and_no_row_is_there_twice(name, prepared):
    prompts = [[tuple(turns[0].prompt_ids) for turns in part.turns] for part in (prepared.train, prepared.held_out)]
    assert len(set(prompts[0])) == len(prompts[0]) == 20_000 and len(set(prompts[1])) == len(prompts[1]) >= 200
    assert not set(prompts[0]) & set(prompts[1])


def test_rows_are_the_same_at_every_call_and_the_arms_ask_the_same(name):
    cls = load_recipe(name)
    for part in ("data", "held_out"):
        first, again = (list(itertools.islice(getattr(cls.recipe, part)(), 300)) for _ in range(2))
        assert first == again
        direct = cls.recipe.ablation.get("direct", {}).get(part)
        if direct:
            others = list(itertools.islice(direct(), 300))
            assert [row["prompt"] for row in others] == [row["prompt"] for row in first]
            assert [row["completion"] for row in others] == [row["completion"].rpartition("}")[2] for row in first]


@pytest.mark.parametrize(
    ("said", "stopped", "scores"),
    [
        ("{3+4=7;7+5=12}12", True, {"exact": 1.0, "exact_3_terms": 1.0}),
        ("12", True, {"exact": 1.0, "exact_3_terms": 1.0}),
        ("{3+4=8;8+5=13}12", True, {"exact": 1.0, "exact_3_terms": 1.0}),  # the answer is judged, not the way to it
        ("{3+4=7;7+5=12}13", True, {"exact": 0.0, "exact_3_terms": 0.0}),
        ("{3+4=7;7+5=12}12", False, {"exact": 0.0, "exact_3_terms": 0.0}),
        ("{3+4=7;7+5=12", True, {"exact": 0.0, "exact_3_terms": 0.0}),
    ],
)
def test_a_sum_is_judged_by_its_answer_and_counted_by_its_terms(said, stopped, scores):
    expected = {"content": "{3+4=7;7+5=12}12", "asked": "<3+4+5>"}
    assert load_recipe("chain-of-thought").score({"content": said, "stopped": stopped}, expected) == scores


@pytest.mark.parametrize(("said", "stopped", "exact"), [("dcba", True, 1.0), ("dcba", False, 0.0), ("dcb", True, 0.0), ("", True, 0.0)])
def test_a_word_is_judged_letter_for_letter(said, stopped, exact):
    assert load_recipe("reverse-words").score({"content": said, "stopped": stopped}, {"content": "dcba"}) == {"exact": exact}


def test_weights_come_from_the_seed(prepared):
    one, same, other = (load_base(prepared.recipe, prepared.tokenizer, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert {p.dtype for p in one.parameters()} == {torch.float32}


def test_prompts_of_different_lengths_are_answered_together_as_each_alone(prepared):
    """`#` fills the left of the shorter ones, and is the stop token as well."""
    model, tokenizer = load_base(prepared.recipe, prepared.tokenizer), prepared.tokenizer
    prompts = [question.prompt_ids for question in prepared.questions[:5]]
    together = generate(model, prompts, prepared.stop_ids, tokenizer.pad_token_id, 8)
    assert together == [generate(model, [prompt], prepared.stop_ids, tokenizer.pad_token_id, 8)[0] for prompt in prompts]


def test_the_unmasked_arm_learns_the_question_too_and_is_judged_alike(tmp_path):
    where = dict(output_dir=str(tmp_path / "run"), report_to="none")
    trainers = [build_trainer("reverse-words", arm=arm, **where) for arm in ("completion", "everything")]
    for trainer in trainers:
        assert torch.equal(trainer.model.lm_head.weight, trainers[0].model.lm_head.weight)
    masked, unmasked = (trainer.prepared for trainer in trainers)
    assert [row["input_ids"] for row in masked.train.rows[:99]] == [row["input_ids"] for row in unmasked.train.rows[:99]]
    row = unmasked.train.rows[0]
    assert row["labels"] == [IGNORED, *row["input_ids"][1:]]
    assert masked.held_out.rows == unmasked.held_out.rows


def test_a_run_writes_down_which_function_made_its_rows(tmp_path):
    recipe = load_recipe("chain-of-thought").recipe
    Run(tmp_path).write("functions.json", {"whole": recipe.data, "direct": recipe.ablation["direct"]["data"]})
    name = "recipes.chain_of_thought.train_sums"
    assert Run(tmp_path).read("functions.json") == {"whole": name, "direct": f"{name}(False)"}


def test_only_a_model_from_scratch_may_learn_everything():
    with pytest.raises(RecipeError, match="mask is 'everything': it would train a base to write its user's words"):
        resolve("gemma-tools", mask="everything")
