"""The house's import rules, and the frozen front door."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sft_recipes

PACKAGE = Path(sft_recipes.__file__).parent
ROOMS = [file.stem for file in PACKAGE.glob("*.py") if file.stem not in ("__init__", "__main__")]

# Which rooms a room may import; those that are absent may import any room but `cli`.
MAY = {
    "recipe": set(),
    "scores": set(),
    "tracking": set(),
    "data": {"recipe"},
    "closing": set(),
    "turns": {"recipe", "closing"},
    "rows": {"turns"},
    "loss": {"rows"},
    "weights": {"recipe"},
    "evaluate": {"recipe", "data", "turns", "weights"},
    "export": {"recipe", "weights", "turns", "rows", "evaluate"},
    "run": {"recipe"},
    "config": {"recipe"},
}
HEAVY = ("torch", "transformers", "datasets", "peft", "trl", "accelerate")


def imports(room):
    """Rooms, and outside packages, that a room's module imports anywhere in it."""
    rooms, packages = set(), set()
    for node in ast.walk(ast.parse((PACKAGE / f"{room}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            rooms |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            packages.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
    return rooms, packages


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room):
    rooms, packages = imports(room)
    assert rooms <= MAY.get(room, set(ROOMS)) - {"cli"}
    assert "trl" not in packages or room in ("trainer", "config")
    assert room not in ("recipe", "turns", "closing", "scores") or not packages & set(HEAVY)


def test_there_is_no_import_cycle():
    graph = {room: imports(room)[0] & set(ROOMS) for room in ROOMS}
    while graph:
        free = [room for room, needs in graph.items() if not needs & graph.keys()]
        assert free, f"a cycle among {sorted(graph)}"
        for room in free:
            del graph[room]


def test_importing_the_package_and_a_supervision_loads_nothing_heavy():
    code = f"import sys, sft_recipes; sft_recipes.supervise, sft_recipes.Recipe; assert not set(sys.modules) & set({HEAVY!r})"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_touches_neither_environment_nor_logging():
    code = "import os, logging; e = dict(os.environ); import sft_recipes.trainer; assert 'WANDB_DIR' not in os.environ"
    code += "; assert not logging.getLogger('sft_recipes').handlers; import huggingface_hub.constants as c"
    code += "; assert not c.HF_HUB_DISABLE_TELEMETRY"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("words", [["list"], ["--help"]])
def test_list_and_help_are_quick(words):
    """The bar is 0.3 s on a free machine; the best of three, with room for a busy one."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "sft_recipes", *words], check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.6


def test_the_front_door_is_frozen():
    assert sorted(sft_recipes.__all__) == [
        "Recipe",
        "RecipeConfig",
        "RecipeError",
        "RecipeTrainer",
        "Source",
        "SupervisionError",
        "TINY",
        "Turn",
        "build_trainer",
        "load_recipe",
        "scores",
        "supervise",
    ]
    for name in sft_recipes.__all__:
        assert getattr(sft_recipes, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sft_recipes.nothing


def test_recipe_fields_are_frozen():
    assert list(sft_recipes.Recipe.__dataclass_fields__) == [
        "model",
        "data",
        "held_out",
        "adapter",
        "quantization",
        "dtype",
        "chat_template",
        "template_kwargs",
        "primary",
        "max_new_tokens",
        "max_kl",
        "config",
        "tiny",
    ]
