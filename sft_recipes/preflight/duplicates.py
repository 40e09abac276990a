"""Conversations that stand in the data more than once, word for word or nearly so.

Exact copies share `data.fingerprint`. Near copies share at least 0.8 of their word 5-shingles (Jaccard): MinHash signatures
in a locality-sensitive index propose them (`datasketch`; Broder 1997, and Lee et al. 2022, arXiv 2107.06499, for training
data), and the shingles themselves decide.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.reading import Conversation, fingerprint
from ..shelf import picked

Pair = tuple[str, str]  # where a copy stands, and where the conversation it copies stands
NEAR, SHINGLE = 0.8, 5
BANDS, PER_BAND = 18, 7  # of the pairs at exactly 0.8, 98.5% are proposed; at 0.85, 99.8%
UNSURE = 0.1  # a signature of 126 values is this far off about once in two hundred times
COMPARED = 20_000  # training conversations looked at for near copies
PROPOSED = 200  # looked at for each; more of them means one template behind all of the data
SHOWN = 5
SPACELESS = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"  # Thai, Japanese, Chinese: each character counts as a word
WORD = re.compile(rf"[{SPACELESS}]|[^\W{SPACELESS}]+")


@dataclass
class Copies:
    """Pairs of a copy and the conversation it copies; each copy is listed once."""

    exact: list[Pair] = field(default_factory=list)
    near: list[Pair] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """How many, and the first few pairs of each as `file:line`."""
        return {"exact": len(self.exact), "near": len(self.near), "first_exact": self.exact[:SHOWN], "first_near": self.near[:SHOWN]}


@dataclass
class Duplicates:
    """What was found.

    Attributes:
        train: training conversations that copy an earlier one; what removing them would leave has no copies.
        held_out: held-out conversations that stand in the training data.
        distinct: training conversations without exact copies.
        compared: how many of these were looked at for near copies.
        sizes: training and held-out conversations.
    """

    train: Copies
    held_out: Copies
    distinct: int
    compared: int
    sizes: tuple[int, int]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `check --json`."""
        copies = {"train": self.train.as_dict(), "held_out_in_train": self.held_out.as_dict()}
        return {**copies, "distinct": self.distinct, "near_compared": self.compared}

    def warnings(self) -> list[str]:
        """Held-out conversations in the training data (near ones above 1%), and repeated training data (above 5%)."""
        found, (train, held_out) = [], self.sizes
        if exact := self.held_out.exact:
            text = f"{len(exact):,} of {held_out:,} held-out conversations stand word for word in the training data"
            found.append(f"{text}: the scores are flattered; remove them from one side; first: {' = '.join(exact[0])}")
        near = self.held_out.near
        if len(near) > 0.01 * held_out:
            text = f"{len(near):,} of {held_out:,} held-out conversations nearly equal a training one"
            found.append(f"{text}: the scores are flattered; remove them from one side; first: {' ~ '.join(near[0])}")
        copies, sign = self.train.exact + self.train.near, " = " if self.train.exact else " ~ "
        if len(copies) > 0.05 * train:
            text = f"{len(copies):,} of {train:,} training conversations repeat another ({len(self.train.exact):,} word for word)"
            found.append(f"{text} and weigh more than the rest; remove them unless that is wanted; first: {sign.join(copies[0])}")
        return found


def find(train: Sequence[Conversation], held_out: Sequence[Conversation]) -> Duplicates:
    """Exact and near copies within the training conversations, and of held-out ones in them.

    Near copies are looked for in at most 20,000 distinct training conversations, evenly spread.
    """
    first: dict[bytes, int] = {}
    copies: dict[int, list[int]] = {}
    places: list[str] = []
    for i, conversation in enumerate(train):
        places.append(conversation["source"])
        original = first.setdefault(bytes.fromhex(fingerprint(conversation)), i)
        if original != i:
            copies.setdefault(original, []).append(i)
    repeated = [(places[copy], places[original]) for original in sorted(copies) for copy in copies[original]]
    known = [first.get(bytes.fromhex(fingerprint(conversation))) for conversation in held_out]
    leaked = [(copy["source"], places[i]) for copy, i in zip(held_out, known, strict=True) if i is not None]
    distinct = list(first.values())
    compared = picked(train, distinct[:: max(1, -(-len(distinct) // COMPARED))])
    within, across = _near(compared, [c for c, i in zip(held_out, known, strict=True) if i is None])
    sizes = (len(train), len(held_out))
    return Duplicates(Copies(repeated, within), Copies(leaked, across), len(distinct), len(compared), sizes)


def _near(train: Sequence[Conversation], held_out: Sequence[Conversation]) -> tuple[list[Pair], list[Pair]]:
    """Near copies within `train`, and of `held_out` in it. A copy, once found, is not asked about again: templated data
    would otherwise compare everything with everything."""
    kept, judges = _Index(), _Index()
    within: list[Pair] = []
    across: dict[int, Pair] = {}
    for sketch in _sketches(held_out):
        judges.add(sketch)
    for sketch in _sketches(train):
        for copy in list(judges.like(sketch)):
            across[copy.number] = (copy.source, sketch.source)
            judges.remove(copy)
        original = next(kept.like(sketch), None)
        if original is None:
            kept.add(sketch)
        else:
            within.append((sketch.source, original.source))
    return within, [pair for _, pair in sorted(across.items())]


@dataclass(eq=False)
class _Sketch:
    number: int
    source: str
    shingles: np.ndarray  # sorted hashes, each once
    minhash: Any


def _sketches(conversations: Sequence[Conversation]) -> Iterator[_Sketch]:
    """One for each conversation that has words."""
    from datasketch import MinHash  # half a second, most of it scipy

    empty = MinHash(num_perm=BANDS * PER_BAND, hashfunc=int)
    for number, conversation in enumerate(conversations):
        if hashes := sorted(shingles(conversation)):
            minhash = empty.copy()
            minhash.update_batch(hashes)
            yield _Sketch(number, conversation["source"], np.array(hashes, dtype=np.uint32), minhash)


class _Index:
    """Sketches that can be asked for those like another."""

    def __init__(self) -> None:
        from datasketch import MinHashLSH

        self.lsh = MinHashLSH(num_perm=BANDS * PER_BAND, params=(BANDS, PER_BAND))
        self.kept: dict[int, _Sketch] = {}

    def add(self, sketch: _Sketch) -> None:
        self.lsh.insert(sketch.number, sketch.minhash)
        self.kept[sketch.number] = sketch

    def remove(self, sketch: _Sketch) -> None:
        self.lsh.remove(sketch.number)
        del self.kept[sketch.number]

    def like(self, sketch: _Sketch) -> Iterator[_Sketch]:
        """The near ones, the most alike by signature first."""
        proposed = [self.kept[number] for number in self.lsh.query(sketch.minhash)[:PROPOSED]]
        if not proposed:
            return
        alike = np.mean(np.stack([other.minhash.hashvalues for other in proposed]) == sketch.minhash.hashvalues, axis=1)
        for i in np.argsort(-alike, kind="stable"):
            if alike[i] < NEAR - UNSURE:
                return
            if jaccard(sketch.shingles, proposed[i].shingles) >= NEAR:
                yield proposed[i]


def shingles(conversation: Conversation) -> set[int]:
    """Hashes (32 bits) of every run of five words that user and assistant say and of the calls' arguments.

    A conversation of fewer words is one shingle; system prompt, tools and tool results, which many share, do not count.
    """
    words = WORD.findall(" ".join(_texts(conversation)).lower())
    size = min(SHINGLE, len(words))
    return {zlib.crc32(" ".join(words[i : i + size]).encode()) for i in range(len(words) - size + 1)} if words else set()


def _texts(conversation: Conversation) -> Iterator[str]:
    for message in conversation["messages"]:
        if message["role"] not in ("user", "assistant"):
            continue
        content = message.get("content", "")
        yield content if isinstance(content, str) else " ".join(str(part.get("text", "")) for part in content)
        for call in message.get("tool_calls", ()):
            yield json.dumps(call["function"].get("arguments"), ensure_ascii=False, sort_keys=True)


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Shared over all, of two sets given as arrays of distinct values."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)
