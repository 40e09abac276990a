"""Code is run where it can do no harm, and passes when its tests have run to their end, not before."""

import json
import os
import sys
import time

import pytest

from sft_recipes.config import resolve
from sft_recipes.evaluate import judge
from sft_recipes.prepare import prepare
from sft_recipes.scores import programs, python_passes
from sft_recipes.scores.programs import code_in

SQUARE = "def f(x):\n    return x * x\n"
MB = 2**20


def passes(code, tests="assert f(2) == 4", **limits):
    return python_passes({"content": code, "stopped": True}, {"tests": tests}, **limits)


@pytest.mark.parametrize(
    "code",
    [
        SQUARE,
        f"Here you are:\n\n```python\n{SQUARE}```\n\nIt squares.",
        f"```python\nwrong\n```\n```py\n{SQUARE}```\n```\noutput\n```",
        f"```\n{SQUARE}```",
        f"from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n{SQUARE}",
        f"import asyncio\nasync def g():\n    await asyncio.sleep(0)\nasyncio.run(g())\n{SQUARE}",
        f"from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(4) as pool: list(pool.map(abs, [1]))\n{SQUARE}",
        f"import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n{SQUARE}",
        f"import os\nopen('a', 'w').write('x'); os.mkdir('d'); os.rename('a', 'd/b'); os.remove('d/b'); os.rmdir('d')\n{SQUARE}",
        f"import tempfile\nwith tempfile.TemporaryDirectory() as d: open(d + '/a', 'w').write('x')\n{SQUARE}",
        f"for _ in range(20_000): print('flood' * 200)\n{SQUARE}",
        f"import os\nassert set(os.environ) <= {{'PYTHONHASHSEED', 'TMPDIR', 'LC_CTYPE'}} and os.listdir() == []\n{SQUARE}",
    ],
)
def test_what_is_right_passes(code):
    assert passes(code) == 1.0


@pytest.mark.parametrize(
    "code",
    [
        "def f(x):\n    return x + 1\n",
        "def f(x:\n",
        "",
        "exit(0)",
        "import os; os._exit(0)",
        "def f(x):\n    raise SystemExit(0)",
        f"{SQUARE}x = '''",
        "def f(x):\n    return f(x)",
    ],
)
def test_what_is_wrong_or_leaves_early_does_not(code):
    assert passes(code) == 0.0


@pytest.mark.parametrize(
    "code",
    [
        "import os\nwhile True: os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "import multiprocessing as m; m.get_context('spawn').Process(target=print).start()",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.kill(os.getppid(), 0)",
        "import ctypes; ctypes.CDLL(None).system(b'true')",
        "import socket; socket.socket()",
        "import socket; socket.getaddrinfo('localhost', 80)",
        "import socket; socket.socket(socket.AF_UNIX).connect('/run/x')",
        "for i in range(200): open(str(i), 'w').close()",
        "open('a', 'w').write('x' * 10**7)",
    ],
)
def test_what_is_forbidden_ends_the_program(code):
    quiet = "".join(f"    {line}\n" for line in code.splitlines())
    assert passes(f"try:\n{quiet}except BaseException: pass\n{SQUARE}") == 0.0 or "10**7" in code


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.remove({0!r})",
        "open({0!r}, 'w')",
        "open({0!r}, 'r+')",
        "import os; os.rename({0!r}, 'here')",
        "import os; os.truncate({0!r}, 0)",
        "import os; os.symlink({0!r}, 'link'); open('link', 'w')",
        "import os; os.link({0!r}, 'link')",
        "import os; os.chmod({0!r}, 0)",
        "import shutil, os; shutil.rmtree(os.path.dirname({0!r}))",
        "import pathlib; pathlib.Path({0!r}).unlink()",
        "import os; os.chdir(os.path.dirname({0!r})); os.remove('kept')",
    ],
)
def test_what_lies_outside_stays_as_it_is(tmp_path, code):
    file = tmp_path / "kept"
    file.write_text("mine")
    assert passes(f"{code.format(str(file))}\n{SQUARE}") == 0.0
    assert file.read_text() == "mine" and file.stat().st_mode & 0o400


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux")
def test_memory_is_cut_off():
    hog = f"try:\n    x = bytearray({200 * MB})\nexcept MemoryError:\n    x = None\n{SQUARE}"
    assert passes(hog, "assert x is None", memory=100 * MB) == 1.0
    assert passes(f"x = []\nwhile True: x.append('x' * {MB})", memory=100 * MB) == 0.0


@pytest.mark.parametrize("code", ["while True: pass", "import time; time.sleep(60)", "while True:\n try:\n  f()\n except Exception: pass"])
def test_an_endless_loop_is_cut_at_the_limit(code):
    started = time.monotonic()
    assert passes(code, seconds=0.3) == 0.0
    assert time.monotonic() - started < 1.5


def test_a_reply_that_was_cut_and_a_reference_without_tests_score_nothing():
    assert python_passes({"content": SQUARE, "stopped": False}, {"tests": "assert f(2) == 4"}) == 0.0
    assert python_passes({"content": SQUARE, "stopped": True}, {}) == 0.0
    assert (
        passes(SQUARE, ["assert f(2) == 4", "assert f(3) == 9"]) == 1.0 and passes(SQUARE, ["assert f(2) == 4", "assert f(3) == 8"]) == 0.0
    )


def test_tests_that_leave_early_do_not_pass():
    assert passes(SQUARE, "import unittest\nclass T(unittest.TestCase): pass\nif __name__ == '__main__': unittest.main()") == 0.0


def test_an_interpreter_that_does_not_come_up_is_no_fault_of_the_reply(monkeypatch, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("raise ImportError('no libpython')")
    monkeypatch.setattr(programs, "CONFINED", broken)
    with pytest.raises(RuntimeError, match=r"did not come up(?s:.*)no libpython"):
        passes(SQUARE)


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    passes("open('a', 'w').write('x')\n" + SQUARE)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("x = 1", "x = 1"),
        ("```python\nx = 1\n```", "x = 1\n"),
        ("```python\na\n```\ntext\n``` python\nb\n```", "b\n"),
        ("```bash\nls\n```", "```bash\nls\n```"),
        ("```python\nx = '```'\n```", "x = '```'\n"),
    ],
)
def test_the_code_of_a_reply(content, code):
    assert code_in(content) == code


def test_the_tests_of_a_row_reach_the_score_and_not_the_model(tmp_path):
    row = {"completion": f"```python\n{SQUARE}```", "tests": ["assert f(2) == 4", "assert f(3) == 9"]}
    rows = [{"prompt": f"Square a number, {i}.", **row} for i in range(5)]
    file = tmp_path / "code.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    resolved = resolve("gemma-tools", "tiny", data=str(file), held_out=1, output_dir=str(tmp_path / "run"))
    prepared = prepare(resolved.trainer_class, resolved.recipe, resolved.config.max_length)
    (question,), ((turn,),) = prepared.questions, prepared.held_out.turns
    assert "assert" not in prepared.tokenizer.decode(question.prompt_ids + turn.completion_ids)

    def score(reply, expected):
        return {"python_passes": python_passes(reply, expected)}

    wrong = turn.completion_ids[:3] + turn.completion_ids[-1:]
    for ids, expected in ((turn.completion_ids, 1.0), (wrong, 0.0)):
        (sample,) = judge([question], [ids], prepared.tokenizer, prepared.stop_ids, score)
        assert sample.scores["python_passes"] == expected
