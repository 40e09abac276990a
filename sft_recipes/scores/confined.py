"""A program of its own, run by `programs`: it takes away what it can from its own process, then runs code and says whether it ended.

    time      CPU seconds (RLIMIT_CPU); the wall clock is watched from outside
    memory    address space (RLIMIT_AS)
    files     4 MB each, 100 openings for writing, and nothing written, moved or deleted outside the working directory
    network   a network namespace of its own where Linux allows it; elsewhere, and besides, no socket but a process's own pairs
    processes none: no fork, exec, spawn, no shell, no signal to another, no look into another
    output    into nothing

What Python reports to its audit hooks is judged there (PEP 578), and the process ends at once where it may not be.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import types
from collections.abc import Callable
from contextlib import suppress

# names of our own: code that patches `os` does not patch what judges it
from os import PathLike, devnull, fsdecode, getpid, sep, write
from os import _exit as end
from os.path import basename, dirname, join, realpath
from socket import AF_UNIX
from typing import Any

FILE_BYTES, OPENINGS = 4 * 2**20, 100
NEW_USER, NEW_NETWORK, DIE_WITH_PARENT = 0x10000000, 0x40000000, 1  # <sched.h>, <sys/prctl.h>
FORBIDDEN = ("socket.", "subprocess.", "ctypes.", "os.system", "os.fork", "os.exec", "os.spawn", "os.posix_spawn", "pty.", "os.kill")
# Events that change what is at a path: which arguments are paths, and which the open folders that these may be relative to.
CHANGES: dict[str, dict[int, int | None]] = {
    "os.remove": {0: 1},
    "os.rmdir": {0: 1},
    "os.mkdir": {0: 2},
    "os.rename": {0: 2, 1: 3},
    "os.link": {0: 2, 1: 3},
    "os.symlink": {1: 2},
    "os.truncate": {0: None},
    "os.chmod": {0: 2},
    "os.chown": {0: 3},
    "os.utime": {0: 3},
    "os.setxattr": {0: None},
    "os.removexattr": {0: None},
    "sqlite3.connect": {0: None},
}
ENTRIES = ("os.remove", "os.rmdir", "os.mkdir", "os.rename", "os.link", "os.symlink")  # of these a link itself, not what it leads to
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    """Read what to run from standard input; write `started`, and the nonce after the last text has run, to standard output."""
    given = json.loads(sys.stdin.read())
    answer = os.dup(1)
    limit(given["seconds"], given["memory"])
    nothing = os.open(os.devnull, os.O_RDWR)
    write(answer, b"started\n")
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    confine(os.getcwd())
    run(given["texts"])
    write(answer, f"{given['nonce']}\n".encode())
    end(0)  # with threads left behind, and without what was registered for the end


def limit(seconds: float, memory: int) -> None:
    """What the kernel holds a process to; a limit that a system does not know is left out."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "unshare") and libc.unshare(NEW_USER | NEW_NETWORK) != 0:
        libc.unshare(NEW_NETWORK)
    if hasattr(libc, "prctl"):
        libc.prctl(DIE_WITH_PARENT, signal.SIGKILL)
    limits = {"RLIMIT_CPU": int(seconds) + 1, "RLIMIT_AS": memory, "RLIMIT_FSIZE": FILE_BYTES, "RLIMIT_CORE": 0}
    for name, value in limits.items():
        with suppress(ValueError, OSError, AttributeError):
            resource.setrlimit(getattr(resource, name), (value, value))


def confine(folder: str) -> None:
    """From here on, whatever Python reports that is not allowed ends the process. There is no way back."""
    import _posixsubprocess
    import _signal

    # Python reports neither: multiprocessing spawns through the one, the other signals any process of the person's
    for module, name in ((_posixsubprocess, "fork_exec"), (_signal, "pidfd_send_signal"), (signal, "pidfd_send_signal")):
        setattr(module, name, lambda *args: end(1))
    sys.addaudithook(_hook(realpath(folder)))


def _hook(folder: str) -> Callable[[str, tuple], None]:
    left = [OPENINGS]

    def hook(event: str, args: tuple) -> None:
        if event == "open" and args[2] & WRITING:
            left[0] -= 1
        if left[0] < 0 or not _allowed(event, args, folder):
            end(1)

    return hook


def _allowed(event: str, args: tuple, folder: str) -> bool:
    if event == "open":
        path, _, flags = args
        if not flags & WRITING:
            return isinstance(path, int) or not _of_another(path)
        return isinstance(path, int) or path == devnull or _inside(path, None, folder, True)
    if event in CHANGES:
        at = ((args[path], args[beside] if beside is not None else None) for path, beside in CHANGES[event].items())
        return all(_inside(path, beside, folder, event not in ENTRIES) for path, beside in at)
    if event == "socket.__new__":
        return args[1] == AF_UNIX  # an event loop wakes itself through a pair of them; to connect is another event
    return not event.startswith(FORBIDDEN)


def _of_another(path: Any) -> bool:
    """Whether a path leads into another process: its environment, with its tokens, and its memory can be read there."""
    whole = realpath(fsdecode(path)) if isinstance(path, (str, bytes, PathLike)) else ""
    process = whole.split(sep)[2] if whole.startswith(f"{sep}proc{sep}") else ""
    return process.isdigit() and process != str(getpid())


def _inside(path: Any, beside: int | None, folder: str, following: bool) -> bool:
    """Whether a path lies in the folder; relative to the open folder `beside`, where that is one."""
    if not isinstance(path, (str, bytes, PathLike)):
        return False
    text = fsdecode(path).rstrip(sep)
    if beside not in (None, -1):
        text = join(realpath(f"/proc/self/fd/{beside}"), text)  # where there is no such thing it lies outside
    whole = realpath(text) if following else join(realpath(dirname(text) or "."), basename(text))
    return whole.startswith(f"{folder}{sep}")


def run(texts: list[str]) -> None:
    """Run each text in one namespace; compiled apart, so that none can swallow the next. The last is the main program: the tests."""
    module = types.ModuleType("solution")
    for number, text in enumerate(texts):
        name = "__main__" if number == len(texts) - 1 else module.__name__
        sys.modules[name] = module  # dataclasses and pickle look their classes up
        module.__dict__["__name__"] = name
        exec(compile(text, f"<{name}>", "exec"), module.__dict__)


if __name__ == "__main__":
    main()
