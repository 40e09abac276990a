"""`supervise` for more conversations than memory should hold: block by block, on all cores, the turns on disk.

Each block is kept in the cache by itself, so that a preparation that was cut off goes on, and one row that changed costs one block.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

from ..recipe import RecipeError, SupervisionError
from ..shelf import Shelf
from ..watch import watched
from .dataset import supervise_all
from .supervisor import Conversation, Supervisor
from .turn import Turn, pack, unpack

BLOCK = 2048  # conversations that a process takes at a time
PROCESSES = 8  # at most, as each has a tokenizer and what it remembers
AHEAD = 2  # blocks for each process that wait for it, or for their turn


def supervise_many(
    supervisor: Supervisor, conversations: Iterable[Conversation], total: int, cache: Path | None = None, processes: int | None = None
) -> Shelf[list[Turn] | SupervisionError]:
    """`dataset.supervise_all`, with what is found on disk.

    Args:
        supervisor, conversations, cache: as `supervise_all` takes them; the conversations are read once, in order.
        total: how many there are.
        processes: beside this one; `None` for as many as there are cores for it, 8 at most, and none where that is one.

    Raises:
        RecipeError: a process was killed; or the disk is full.
    """
    found: Shelf[list[Turn] | SupervisionError] = Shelf(_decoded)
    count = processes_here() if processes is None else processes
    blocks = _blocks(conversations)
    with _workers(supervisor, cache, count) as work:
        for encoded, size in watched(_in_order(work, blocks, AHEAD * count), "supervising", total, BLOCK):
            found.put(encoded, size)
    return found


def processes_here() -> int:
    """Cores of this machine that are this process's, at most eight; 0 for one core."""
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(PROCESSES, cores // max(1, beside))
    return count if count > 1 else 0


def _blocks(conversations: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    waiting = iter(conversations)
    while block := list(islice(waiting, BLOCK)):
        yield block


Work = Callable[[list[Conversation]], Future]


@contextmanager
def _workers(supervisor: Supervisor, cache: Path | None, count: int) -> Iterator[Work]:
    """What takes a block and promises its turns: a pool of processes, or this one."""
    made = None if not count else _pickled((_recipe_of(supervisor), cache))
    if made is None:
        yield lambda block: _done(_encoded(supervisor, block, cache))
        return
    pool: Executor = ProcessPoolExecutor(count, get_context("spawn"), _begin, (made,))

    def work(block: list[Conversation]) -> Future:
        with _nameless_main():
            return pool.submit(_work, block)

    try:
        yield work
    except BrokenProcessPool as error:
        what = "a process that supervised conversations was killed, most likely for want of memory"
        raise RecipeError(f"{what}; what was done is kept: begin again, with more memory or fewer cores (taskset -c 0,1)") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(work: Work, blocks: Iterator[list[Conversation]], ahead: int) -> Iterator[tuple[bytes, int]]:
    """The turns of each block, encoded, and how many conversations it has."""
    waiting: deque[tuple[Future, int]] = deque()
    for block in blocks:
        waiting.append((work(block), len(block)))
        if len(waiting) > ahead:
            future, size = waiting.popleft()
            yield future.result(), size
    for future, size in waiting:
        yield future.result(), size


def _done(value: bytes) -> Future:
    future: Future = Future()
    future.set_result(value)
    return future


def _pickled(made: Any) -> bytes | None:
    """`None` for a tokenizer that cannot go to another process."""
    try:
        return pickle.dumps(made)
    except Exception:  # whatever a class of the person's own raises
        return None


def _recipe_of(supervisor: Supervisor) -> dict[str, Any]:
    """What makes another such supervisor."""
    options = {"last_turn_only": supervisor.last_turn_only, "allow_control_tokens": supervisor.allow_control_tokens}
    return {"tokenizer": supervisor.template.tokenizer, **options, **supervisor.template.kwargs}


@contextmanager
def _nameless_main() -> Iterator[None]:
    """A new process would run the person's script again, which need not be written for that."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


_mine: dict[str, Any] = {}  # of a process of the pool: its supervisor and its cache


def _begin(made: bytes) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the cores are taken
    Thread(target=_leave_with_parent, daemon=True).start()
    options, cache = pickle.loads(made)
    _mine["supervisor"], _mine["cache"] = Supervisor(**options), cache


def _leave_with_parent() -> None:
    """A pool does not notice that the process which began it was killed, and would wait for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(block: list[Conversation]) -> bytes:
    return _encoded(_mine["supervisor"], block, _mine["cache"])


def _encoded(supervisor: Supervisor, block: list[Conversation], cache: Path | None) -> bytes:
    """The turns of a block as arrays, and by their place the faults of those conversations that have some."""
    found = supervise_all(supervisor, block, cache, quiet=True)
    faults = {i: turns.faults for i, turns in enumerate(found) if isinstance(turns, SupervisionError)}
    return pickle.dumps((pack([turns if isinstance(turns, list) else [] for turns in found]), faults), pickle.HIGHEST_PROTOCOL)


def _decoded(encoded: bytes) -> list[list[Turn] | SupervisionError]:
    arrays, faults = pickle.loads(encoded)
    found: list[list[Turn] | SupervisionError] = list(unpack(arrays))
    for i, told in faults.items():
        found[i] = SupervisionError(*told)
    return found
