"""Python code: whether it passes its tests, run in a process of its own."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

SECONDS, MEMORY = 10.0, 512 * 2**20
CONFINED = Path(__file__).with_name("confined.py")
PYTHON = ("python", "python3", "py")


def python_passes(reply: dict, expected: dict, seconds: float = SECONDS, memory: int = MEMORY) -> float:
    """Whether the turn stopped and its code passes `expected["tests"]`, the `tests` of its row: a text, or several in a list.

    The code is the reply's last ```python fence, else its last fence of no language, else all of its content. The tests are
    Python text that follows it in the same namespace and raises where something is wrong, as MBPP's asserts do, or HumanEval's
    `check(candidate)` when called; `unittest` classes would have to be run and their result asserted.

    A fresh interpreter runs both, with the standard library alone, no environment of yours and an empty working directory: see
    `confined`. It protects a machine from what models write by accident: endless loops, memory, forks, floods of output or files,
    deleted files, calls home. It is no sandbox: files can be read, and code that means to get out of a Python process will
    find a way. Run a model that you do not trust in a container or a virtual machine. Nor does it protect the score from
    code that is written against the tests, such as an `__eq__` that is always true.

    Args:
        reply: with `content` and `stopped`.
        expected: with `tests`; without any, nothing passes.
        seconds: until everything is killed, whatever it does; its CPU time is limited likewise.
        memory: address space, in bytes.

    Raises:
        NotImplementedError: this is not a POSIX system.
        TypeError: the tests are not text.
        RuntimeError: the interpreter did not come up, which says nothing about the reply.
    """
    tests = expected.get("tests") or ""
    tests = tests if isinstance(tests, str) else "\n".join(tests)
    if not reply["stopped"] or not tests.strip():
        return 0.0
    return float(_runs([code_in(reply.get("content") or ""), tests], seconds, memory))


def code_in(content: str) -> str:
    """The code in a reply: its last fence of Python, else its last one of no language, else everything."""
    blocks: list[tuple[str, list[str]]] = []
    inside = False
    for line in content.split("\n"):
        bare = line.strip()
        if bare.startswith("```") and not inside:
            blocks.append((bare.strip("`").strip().lower(), []))
            inside = True
        elif bare == "```":
            inside = False
        elif inside:
            blocks[-1][1].append(line)
    for wanted in (PYTHON, ("",)):
        if found := [lines for language, lines in blocks if language in wanted]:
            return "\n".join(found[-1]) + "\n"
    return content


def _runs(texts: list[str], seconds: float, memory: int) -> bool:
    """Whether all texts run to their end; a word that only we know, said after the last, tells it from an early exit."""
    if os.name != "posix":
        raise NotImplementedError("python_passes limits a process as POSIX systems do; run it on Linux or macOS")
    nonce = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as answer:
        given.write(json.dumps({"texts": texts, "nonce": nonce, "seconds": seconds, "memory": memory}).encode())
        given.seek(0)
        command = [sys.executable, "-P", "-s", "-S", "-B", str(CONFINED)]  # as -I, which would not let the hash seed through
        process = subprocess.Popen(
            command,
            stdin=given,
            stdout=answer,
            stderr=answer,
            cwd=folder,
            env={"PYTHONHASHSEED": "0", "TMPDIR": folder},
            start_new_session=True,
        )
        cut = _waited(process, seconds)
        answer.seek(0)
        came = answer.read(2000).decode(errors="replace")
    if not cut and not came.startswith("started\n"):
        raise RuntimeError(f"python_passes: {sys.executable} did not come up (exit {process.returncode}): {came.strip()[-400:]}")
    return not cut and came == f"started\n{nonce}\n"


def _waited(process: subprocess.Popen, seconds: float) -> bool:
    """Wait for a process and kill its group; whether the time was up before."""
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        return True
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
