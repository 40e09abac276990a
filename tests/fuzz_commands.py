"""Mutated recipes and command lines: the command ends with 0, or with an exit code and lines that say what is wrong; never a traceback.

A case is its seed. A third of them are a person's recipe module with something wrong in it, a third command lines of every verb, a
third a run folder with damaged files that a verb is asked to read. Nothing is trained: what would be is stopped at the trainer.
"""

from __future__ import annotations

import importlib
import json
import random
import re
import shutil
import sys
from pathlib import Path

import click
from fuzz_data import Broken
from mutated_data import BYTES, TEXTS
from typer.testing import CliRunner

from sft_recipes import cli
from sft_recipes.config.typed import CONFIG_FIELDS, OWN_FIELDS
from sft_recipes.recipe import LONGEST

MODULE = '''"""Teach a thing.

More of it.
"""

from sft_recipes import TINY, Recipe, RecipeTrainer


class Mine(RecipeTrainer):
    recipe = Recipe(
        model=f"{TINY}/letters",
        from_scratch=True,
        data="good.jsonl",
        held_out=1,
        dtype="float32",
        chat_template="plain",
        stop_token="#",
        primary="exact",
        max_new_tokens=12,
        config=dict(max_steps=4, learning_rate=3e-3, max_length=512, report_to="none"),
        ablation={"first": {}, "second": {"mask": "everything"}},
    )

    @staticmethod
    def conversation(row: dict) -> dict:
        return row

    @staticmethod
    def score(reply: dict, expected: dict) -> dict[str, float]:
        return {"exact": float(reply["content"] == expected["content"])}
'''
LITERALS = [
    *("None", "True", "-1", "0", "10**400", "float('nan')", "float('inf')", "''", "'x'", "[]", "{}", "()", "(1, 2)", "object()", "print"),
    *("b'x'", "{'a': {}}", "{'second': None}", "dict(learning_rate='x')", "dict(nothing=1)", "'a\\nb'", "'\\ud800'", "1/0", "undefined"),
    *(
        "dict(max_steps=None)",
        "lambda: 1",
        "lambda: [None]",
        "lambda: iter([{}])",
        "'no.jsonl'",
        "('good.jsonl', 3)",
        "'../x'",
        "3.7",
        "{1: 2}",
    ),
]
BODIES = [
    "return None",
    "return 3",
    "raise KeyError('x')",
    "raise SystemExit(3)",
    "return {}",
    "return {'exact': 'x'}",
    "return {1: 2}",
    "1/0",
]
STATEMENTS = [
    *(
        "raise RuntimeError('at import')",
        "import nothing_here",
        "import sys; sys.exit(3)",
        "from sft_recipes import Nothing",
        "x = (",
        "\tx = 1",
    ),
    *("class Other(Mine):\n    recipe = Mine.recipe", "del Mine", "Mine.recipe = None", "Mine.recipe = 3", "class Mine: recipe = 1"),
    *("Mine.conversation = 3", "Mine.score = None", "raise KeyboardInterrupt", "assert False", "x = '\\x00'", "raise Exception('a\\nb')"),
]
GOOD = [{"prompt": f"<{word}>", "completion": word[::-1]} for word in ("abc", "defg", "hi", "jkl", "mno", "pqrs")]
VERBS = ["check", "check", "check", "show", "plan", "train", "eval", "merge", "chat", "report", "list"]
WORDS = [
    *(
        "",
        " ",
        "-",
        "--",
        "---",
        "--=",
        "--x",
        "-x",
        "--scale",
        "--json",
        "--row",
        "--all",
        "--resume",
        "--html",
        "--adapter",
        "--base",
        "--help",
    ),
    *(
        "mine",
        "gemma-tools",
        "gemma_tools",
        "Mine",
        "../mine",
        "recipes/mine",
        "recipes.mine",
        "mine.py",
        "os",
        "__init__",
        "/etc/passwd",
        ".",
    ),
    *(
        "runs/mine",
        "runs",
        "tiny",
        "full",
        "auto",
        "none",
        "true",
        "0",
        "-1",
        "1e-4",
        "nan",
        "inf",
        "1" * 400,
        "x" * 5000,
        "[1]",
        '{"a": 1}',
    ),
    *("good.jsonl", "no.jsonl", "a.parquet", "a\nb", "é", "\u202e", "\x1b[31m", "null", "1,2", "$HOME", "*", "~", "\ud800"),
]
FILES = ["recipe.json", "metrics.json", "samples.jsonl", "history.jsonl", "rows.jsonl", "ablation.json"]
SAID = re.compile(r"^(error|fault|warning|note|usage|try|\W)", re.IGNORECASE)
runner = CliRunner()


def judged(case: str, folder: Path) -> str:
    """What became of a case, by its exit code; the working directory is `folder`, which is written anew.

    Raises:
        Broken: an exception came out, or what was said is not one printable line a fault.
    """
    rng = random.Random(case)
    for old in folder.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    (folder / "recipes").mkdir()
    (folder / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GOOD))
    kind = rng.choice([_module, _line, _run])
    (folder / "recipes" / "mine.py").write_bytes(MODULE.encode())
    words = kind(rng, folder)
    return _ran(words)


def _module(rng, folder):
    """A recipe with one to three things wrong in its source."""
    text = MODULE
    for _ in range(rng.choice([1, 1, 2, 3])):
        lines, what = text.split("\n"), rng.randrange(7)
        fields = [i for i, line in enumerate(lines) if re.match(r" {8}\w+=", line)]
        if what in (0, 1) and fields:
            at = rng.choice(fields)
            lines[at] = re.sub(r"=.*", lambda _: f"={rng.choice(LITERALS)},", lines[at])
        elif what == 2 and fields:
            lines.insert(rng.choice(fields), f"        {rng.choice([*sorted(OWN_FIELDS), 'nothing', 'modle'])}={rng.choice(LITERALS)},")
        elif what == 3:
            bodies = [i for i, line in enumerate(lines) if line.startswith("        return")]
            lines[rng.choice(bodies or [0])] = f"        {rng.choice(BODIES)}"
        elif what == 4:
            lines.insert(rng.randrange(len(lines)), rng.choice(STATEMENTS))
        elif what == 5:
            lines.append(rng.choice(STATEMENTS))
        else:
            del lines[rng.randrange(len(lines))]
        text = "\n".join(lines)
    content = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.2:
        at = rng.randrange(len(content))
        content = rng.choice([content[:at], content[:at] + rng.choice(BYTES) + content[at:], content[:at] + rng.randbytes(3), b""])
    (folder / "recipes" / "mine.py").write_bytes(content)
    return [rng.choice(["check", "check", "plan", "show", "list", "train"]), "mine"][: 1 if rng.random() < 0.05 else 2]


def _line(rng, folder):
    """A verb, perhaps a recipe, and fields with values of every kind."""
    words = [rng.choice([*VERBS, rng.choice(WORDS)])]
    if rng.random() < 0.85:
        words.append("mine")
    names = sorted(CONFIG_FIELDS | OWN_FIELDS)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 4])):
        name, value = rng.choice(names) if rng.random() < 0.8 else rng.choice(WORDS), rng.choice([*WORDS, *TEXTS[:30]])
        words += rng.choice([[f"--{name}", value], [f"--{name}={value}"], [f"--{name}"], [value], [f"--{name.replace('_', '-')}", value]])
    return words


def _run(rng, folder):
    """A run folder with files that are damaged, absent or of another shape."""
    run = folder / "runs" / "mine"
    run.mkdir(parents=True)
    metrics = {"primary": "exact", "before": {"exact": 0.0}, "after": {"exact": 1.0}, "merge": {"faults": []}, "stop_tokens": ["#"]}
    said = {"recipe": "mine", "scale": "full", "overrides": {}, "data": {"train": "a", "held_out": "b"}, "config": {}, "resolved": {}}
    whole = dict.fromkeys(FILES, "{}\n") | {"recipe.json": json.dumps(said), "metrics.json": json.dumps(metrics), "ablation.json": "{}"}
    for name in rng.sample(FILES, rng.randint(1, len(FILES))):
        content = whole[name].encode()
        for _ in range(rng.choice([0, 1, 1, 2])):
            at = rng.randrange(len(content) + 1)
            content = rng.choice([content[:at], content[:at] + rng.choice(BYTES) + content[at:], b"[]", b"null", b"3", content[at:]])
        (run / name).write_bytes(content)
    for name in ("merged", "adapter", "checkpoints"):
        if rng.random() < 0.4:
            (run / name).mkdir()
            (run / name / rng.choice(["config.json", "adapter_config.json", "model.safetensors"])).write_bytes(
                rng.choice([b"", b"{}", b"[", b"\xff"])
            )
    verb = rng.choice(
        [["report"], ["eval"], ["merge"], ["chat"], ["report", "runs/mine"], ["train", "mine", "--from"], ["check", "mine", "--from"]]
    )
    return [
        *verb,
        rng.choice(["mine", "runs/mine", "runs/mine/adapter", "runs/mine/merged"] if "--from" in verb else ["mine", "runs/mine"]),
    ]


def _ran(words):
    for name in [name for name in sys.modules if name.partition(".")[0] == "recipes"]:
        del sys.modules[name]
    importlib.invalidate_caches()
    cli._train = lambda report, resuming: None
    sys.dont_write_bytecode = True
    result = runner.invoke(cli.app, words, input="\n")
    error = result.exception
    if error is not None and not isinstance(error, (SystemExit, click.exceptions.Exit)):
        raise Broken(f"{words}: {type(error).__name__}: {error}") from error
    if result.exit_code == 130:  # as a person's Ctrl-C, which a recipe may raise too
        return "interrupted"
    said = [line for line in (result.stderr + result.stdout).split("\n") if line.strip()]
    if result.exit_code and not said:
        raise Broken(f"{words}: exit {result.exit_code} and not a word")
    for line in result.stderr.split("\n"):
        if line.startswith("error: ") and not (line.isprintable() and len(line) < LONGEST + 20 and len(line) > 10):
            raise Broken(f"{words}: {line!r}")
    if result.exit_code and not any(SAID.match(line) for line in said):
        raise Broken(f"{words}: exit {result.exit_code}: {said}")
    return f"exit {result.exit_code}"
