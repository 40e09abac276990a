"""`supervise` for a whole dataset, from the cache where nothing has changed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..recipe import SupervisionError
from .supervisor import Conversation, Supervisor
from .turn import Turn, collector_paused, pack, unpack

CHUNK = 256  # conversations encoded together
SOURCES = tuple(sorted(Path(__file__).parent.glob("*.py")))  # the code that decides the turns, as part of the cache's key


def supervise_all(
    supervisor: Supervisor, conversations: Sequence[Conversation], cache: Path | None = None, quiet: bool = False
) -> list[list[Turn] | SupervisionError]:
    """The turns of each conversation, or the error that says why it has none, in order.

    Args:
        supervisor: the tokenizer, its chat template, and what is learned.
        conversations: `(messages, tools)` as the template knows them.
        cache: a folder that keeps the turns under a hash of conversations, tokenizer, template and this code. Datasets with
            faults are not kept. `None` reads and keeps nothing.
        quiet: show no bar.
    """
    file = cache / f"{fingerprint(supervisor, conversations)}.npz" if cache else None
    with collector_paused():
        if file and (kept := _kept(file, len(conversations))) is not None:
            return kept
        found = _supervised(supervisor, conversations, quiet)
        whole = [turns for turns in found if isinstance(turns, list)]
        if file and len(whole) == len(found):
            _keep(file, whole)
    return found


def fingerprint(supervisor: Supervisor, conversations: Sequence[Conversation]) -> str:
    """A hash of everything that decides the turns: what is said, how it is rendered and encoded, and by which version."""
    template, encoder = supervisor.template, supervisor.encoder
    backend = getattr(encoder.tokenizer, "backend_tokenizer", None)
    decides = {
        "code": [hashlib.sha256(file.read_bytes()).hexdigest() for file in SOURCES],
        "versions": {name: version(name) for name in ("transformers", "tokenizers", "jinja2")},
        "template": template.tokenizer.chat_template,
        "given": {name: repr(value) for name, value in template.given.items()},
        "tokenizer": backend.to_str() if backend else repr(encoder.tokenizer),
        "learned": [supervisor.last_turn_only, supervisor.allow_control_tokens],
    }
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode())
    if "strftime_now" in str(template.tokenizer.chat_template):  # Llama 3.2 writes the date of the day
        digest.update(date.today().isoformat().encode())
    for conversation in conversations:
        # in the order of its keys: templates print schemas and arguments in that order
        digest.update(json.dumps(conversation, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _kept(file: Path, count: int) -> list[Any] | None:
    """The turns of `count` conversations; `None` where the file is absent or broken."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = list(unpack(dict(arrays)))
    except Exception:  # whatever zip files and numpy raise on broken bytes
        return None
    return found if len(found) == count else None


def _keep(file: Path, found: Sequence[list[Turn]]) -> None:
    """Write the turns whole or not at all; a full disk costs only the cache."""
    unfinished = file.with_name(f".{file.stem}.{os.getpid()}.npz")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(unfinished, **pack(found))
        unfinished.replace(file)
    except OSError:
        with suppress(OSError):
            unfinished.unlink()


def _supervised(supervisor: Supervisor, conversations: Sequence[Conversation], quiet: bool) -> list[list[Turn] | SupervisionError]:
    starts = range(0, len(conversations), CHUNK)
    bar = tqdm(starts, desc="supervising", unit_scale=CHUNK, unit=" conversations", disable=quiet or None, delay=2, leave=False)
    behind: list[Future] = []
    with ThreadPoolExecutor(1) as worker:  # one chunk is encoded, in Rust and outside Python's lock, while the next is rendered
        for start in bar:
            behind.append(worker.submit(supervisor.encoded, supervisor.rendered(conversations[start : start + CHUNK])))
        return [turns for chunk in behind for turns in chunk.result()]
