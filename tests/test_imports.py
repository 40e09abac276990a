"""The house's import rules, and the frozen front door."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sft_recipes

PACKAGE = Path(sft_recipes.__file__).parent
# A room is a module, or a folder of modules that serve one purpose.
ROOMS = sorted(
    {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")} - {"__init__", "__main__", "tiny"}
)
MODULES = {file: file.relative_to(PACKAGE).parts for file in PACKAGE.rglob("*.py") if "tiny" not in file.parts}

# Which rooms a room may import; those that are absent may import any room but `cli`.
MAY = {
    "recipe": set(),
    "scores": set(),
    "tracking": {"excerpt", "public"},
    "progress": {"scores", "excerpt"},
    "excerpt": {"scores", "show"},
    "public": set(),
    "shelf": {"recipe"},
    "watch": set(),
    "data": {"recipe", "hub", "shelf", "watch"},
    "hub": {"public"},
    "turns": {"recipe", "shelf", "watch"},
    "rows": {"recipe", "turns", "shelf", "watch"},
    "attention": {"recipe"},
    "optim": {"recipe"},
    "checkpoints": {"recipe"},
    "stopping": set(),
    "spot": {"recipe", "stopping"},
    "arguments": {"public", "recipe", "stopping"},
    "parts": {"data", "recipe", "rows", "turns"},
    "stream": {"data", "parts", "preflight", "prepare", "recipe", "rows", "turns"},
    "continuing": {"recipe", "run"},
    "verdict": set(),
    "weights": {"recipe", "whole", "hub"},
    "engines": {"recipe"},
    "whole": {"recipe"},
    "replies": set(),
    "evaluate": {"recipe", "data", "turns", "weights", "replies", "scores"},
    "export": {"recipe", "checkpoints", "weights", "turns", "rows", "evaluate", "whole"},
    "show": {"recipe", "rows"},
    "run": {"recipe", "excerpt", "public"},
    "lineage": {"recipe", "run", "weights"},
    "plan": {"recipe", "config", "engines", "preflight", "weights", "rows", "show"},
    "config": {"recipe", "engines", "optim", "lineage", "scores"},
}
HEAVY = ("torch", "transformers", "datasets", "peft", "trl", "accelerate")


def files(room):
    return [file for file, parts in MODULES.items() if parts[0].removesuffix(".py") == room]


def imported(file):
    """The modules of ours that a module imports anywhere in it, as dotted paths, and the outside packages it imports."""
    ours, packages = set(), set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = [*file.relative_to(PACKAGE).parts[: -node.level], *(node.module.split(".") if node.module else [])]
            ours |= {".".join([*parts, alias.name]) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            packages.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
    return ours, packages


def imports(room):
    """Rooms, and outside packages, that a room imports anywhere in it."""
    both = [imported(file) for file in files(room)]
    return {name.split(".")[0] for ours, _ in both for name in ours} - {room}, {p for _, packages in both for p in packages}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room):
    rooms, packages = imports(room)
    assert rooms <= MAY.get(room, set(ROOMS)) - {"cli"}
    assert "trl" not in packages or room in ("training", "config")
    # `turns` asks transformers for its template compiler when it first renders
    assert room not in ("recipe", "turns", "scores") or not packages & set(HEAVY) - {"transformers"}


def without_leaves(graph):
    """What is left of an import graph when modules that need nothing of the rest are taken away, again and again."""
    while free := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in free:
            del graph[name]
    return sorted(graph)


def test_there_is_no_import_cycle_among_rooms():
    assert not without_leaves({room: imports(room)[0] & set(ROOMS) for room in ROOMS})


def test_there_is_no_import_cycle_among_modules():
    names = {file: ".".join(parts).removesuffix(".py") for file, parts in MODULES.items() if parts[-1] != "__init__.py"}
    both = {name: {f"{imported_name}." for imported_name in imported(file)[0]} for file, name in names.items()}
    graph = {name: {n for n in both if any(o.startswith(f"{n}.") for o in ours)} - {name} for name, ours in both.items()}
    assert not without_leaves(graph)


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
        "revision",
        "start_from",
        "from_scratch",
        "data",
        "streaming",
        "held_out",
        "adapter",
        "quantization",
        "dtype",
        "chat_template",
        "stop_token",
        "template_kwargs",
        "last_turn_only",
        "allow_control_tokens",
        "mask",
        "loss_per",
        "overlong",
        "max_lost",
        "packing",
        "row_tokens",
        "loraplus_lr_ratio",
        "bad_step",
        "primary",
        "patience",
        "retain",
        "max_rise",
        "forgetting",
        "mix",
        "loss_hint",
        "max_new_tokens",
        "base",
        "max_kl",
        "config",
        "ablation",
        "tiny",
    ]
