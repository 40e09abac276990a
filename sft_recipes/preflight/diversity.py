"""How many different conversations there are among those that look different: the Vendi score (arXiv 2210.02410).

It is the exponential of the entropy of the eigenvalues of K/n, K the similarity of every pair of n texts: n where no two have
anything in common, 1 where all are alike, m for m different ones each as often. Similarity is the cosine of the sets of their words
and of their pairs of neighbouring words. That reads no meaning: a paraphrase is something else, and one sentence with a thousand names
filled in is a few sentences. The common words of a language count as shared, so a thousand different texts do not reach a thousand:
1,000 questions of GSM8K are 557, 800 of BFCL 376, 50 of GSM8K each 20 times 44, and one question about 1,000 places 8.

User prompts and replies are counted apart, as the recipe for few conversations is many different prompts and one manner of reply (LIMA,
arXiv 2305.11206, section 2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..data.reading import Conversation
from .duplicates import WORD

COMPARED = 1_000  # conversations; the time grows with the cube of their number
LOW = 0.05  # of the prompts; below it, a few wishes are said over and over
FEW, MANY = 100, 5_000  # conversations between which that is warned about: fewer tell little, and more may well drill one task
OPENING = 2  # words


@dataclass(frozen=True)
class Diversity:
    """What was found in one part.

    Attributes:
        conversations: how many there are.
        compared: how many of them were looked at, evenly spread.
        prompts: the Vendi score of what users say in these, 1 to `compared`.
        replies: that of what the assistant says.
        openings: how often prompts begin with the same two words, the most frequent first.
    """

    conversations: int
    compared: int
    prompts: float
    replies: float
    openings: Counter[str]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `check --json`."""
        openings = {"different": len(self.openings), "most": self.openings.most_common(1)}
        return {"compared": self.compared, "prompts": round(self.prompts, 1), "replies": round(self.replies, 1), "openings": openings}

    def warnings(self) -> list[str]:
        """A warning where few conversations are even fewer."""
        if not FEW <= self.conversations <= MANY or self.prompts >= LOW * self.compared:
            return []
        ((words, times),) = self.openings.most_common(1)
        often = f"; {times:,} begin with '{words}'" if times > 0.5 * self.compared else ""
        text = f"{self.compared:,} training prompts say what {max(1, round(self.prompts)):,} different ones would (Vendi score){often}"
        return [f"{text}: other wishes in other words teach more than more of these"]


def measure(conversations: Sequence[Conversation]) -> Diversity:
    """The diversity of prompts and of replies, among 1,000 conversations at most."""
    chosen = spread(conversations)
    prompts, replies = ([said(conversation, role) for conversation in chosen] for role in ("user", "assistant"))
    openings = Counter(" ".join(WORD.findall(prompt.lower())[:OPENING]) for prompt in prompts)
    return Diversity(len(conversations), len(chosen), vendi(prompts), vendi(replies), openings)


def spread(conversations: Sequence[Conversation]) -> list[Conversation]:
    """At most 1,000 of them, evenly chosen."""
    count = min(len(conversations), COMPARED)
    return [conversations[i * len(conversations) // count] for i in range(count)]


def said(conversation: Conversation, role: str) -> str:
    """Everything that one side says, calls and their arguments included."""
    messages = [message for message in conversation["messages"] if message["role"] == role]
    calls = (str(call["function"]) for message in messages for call in message.get("tool_calls", ()))
    return " ".join([*(message.get("content") or "" for message in messages), *calls])


def vendi(texts: Sequence[str]) -> float:
    """The Vendi score of texts, 1 to their number; 0 of none. Their order does not matter.

    Exact to about 1e-4 of it: the eigenvalues are taken in float32.
    """
    if not texts:
        return 0.0
    values = _eigenvalues(similarity(texts) / len(texts))
    values = values[values > 0]
    return float(np.exp(-np.sum(values * np.log(values))))


def _eigenvalues(matrix: np.ndarray) -> np.ndarray:
    """Of a symmetric matrix, on one thread: a second saves little here, and where cores are shared they wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return torch.linalg.eigvalsh(torch.from_numpy(matrix)).double().numpy()
    finally:
        torch.set_num_threads(threads)


def similarity(texts: Sequence[str]) -> np.ndarray:
    """Cosines between the sets of words and word pairs of texts, `(n, n)` in float32; those without words are alike."""
    from scipy import sparse

    sets = [features(text) for text in texts]
    columns: dict[str, int] = {}
    places = [columns.setdefault(feature, len(columns)) for found in sets for feature in sorted(found)]
    weights = np.repeat([len(found) ** -0.5 for found in sets], [len(found) for found in sets]).astype(np.float32)
    rows = sparse.csr_array((weights, places, np.cumsum([0, *map(len, sets)])), shape=(len(sets), len(columns)))
    return (rows @ rows.T).toarray()


def features(text: str) -> set[str]:
    """The words of a text, and its pairs of neighbouring words."""
    words = WORD.findall(text.lower()) or [""]
    return {*words, *map(" ".join, pairwise(words))}
