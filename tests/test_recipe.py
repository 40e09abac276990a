"""A recipe is found by name, the person's own first; wrong names get the nearest right one."""

import pytest

from sft_recipes import Recipe, RecipeError, Source, load_recipe
from sft_recipes.recipe import recipe_files, sources, summaries

MODULE = '''"""{doc}"""

from sft_recipes import Recipe, RecipeTrainer


class Mine(RecipeTrainer):
    recipe = Recipe(model="m", data="d.jsonl")
'''


def test_shipped_recipe_is_listed_with_the_first_line_of_its_docstring():
    assert summaries()["gemma-tools"] == "Teach Gemma 3 4B to call your own tools."


def test_own_recipe_comes_first_and_the_shipped_ones_stay(own_recipes):
    (own_recipes / "mine.py").write_text(MODULE.format(doc="My own."))
    (own_recipes / "gemma_tools.py").write_text(MODULE.format(doc="My gemma."))
    assert {name: summaries()[name] for name in ("gemma-tools", "mine")} == {"gemma-tools": "My gemma.", "mine": "My own."}
    assert "reverse-words" in summaries()
    assert load_recipe("mine").__module__ == "recipes.mine"
    assert load_recipe("gemma-tools").recipe.model == "m"


def test_shipped_recipe_loads_beside_a_foreign_package_called_recipes(own_recipes, monkeypatch):
    import sys
    import types

    foreign = types.ModuleType("recipes")
    foreign.__path__ = ["/nowhere"]
    monkeypatch.setitem(sys.modules, "recipes", foreign)
    assert load_recipe("gemma_tools").recipe.model == "google/gemma-3-4b-it"
    assert "/nowhere" in foreign.__path__


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(RecipeError, match=r"unknown recipe 'gema-tools', did you mean 'gemma-tools'\?"):
        load_recipe("gema-tools")


def test_a_module_without_a_recipe_is_refused(own_recipes):
    (own_recipes / "none.py").write_text('"""Nothing."""\n')
    with pytest.raises(RecipeError, match=r"none\.py: expected one class .* found 0"):
        load_recipe("none")


def test_a_syntax_error_names_file_and_line(own_recipes):
    (own_recipes / "broken.py").write_text('"""Broken."""\n\nx = = 1\n')
    assert summaries()["broken"].startswith("cannot be read")
    with pytest.raises(RecipeError, match=r"broken\.py:3: "):
        load_recipe("broken")


def test_tiny_fields_replace_and_tiny_config_is_laid_over():
    recipe = Recipe(model="big", data="d", config={"a": 1, "b": 2}, tiny={"model": "small", "config": {"b": 3}})
    assert (recipe.at("tiny").model, recipe.at("tiny").config) == ("small", {"a": 1, "b": 3})
    assert recipe.at("full") is recipe


def test_unknown_tiny_fields_fail_at_construction_all_together():
    with pytest.raises(RecipeError) as caught:
        Recipe(model="m", data="d", tiny={"modle": "x", "dta": "y"})
    assert caught.value.faults == [
        "unknown field of `tiny` 'modle', did you mean 'model'?",
        "unknown field of `tiny` 'dta', did you mean 'data'?",
    ]


def test_sources_take_every_form():
    assert sources("a.jsonl") == [Source("a.jsonl")]
    assert sources(("a.jsonl", Source("hub/set", "config"))) == [Source("a.jsonl"), Source("hub/set", "config")]


def test_recipe_files_skip_private_modules(own_recipes):
    (own_recipes / "_draft.py").write_text(MODULE.format(doc="Draft."))
    assert "-draft" not in recipe_files() and "_draft" not in recipe_files()
