"""How a reply is said, whatever it says: measured of every reply of every recipe, beside `stops`. None of these is right or wrong.

    length         tokens generated, the stop token included
    repeats        share of the reply's tokens in its longest loop: 0 in prose and JSON, near 1 where it runs in circles
    echoes_prompt  share of the reply's tokens that are copied from the user's last message in one piece
    distinct       different replies per different prompt, over all that is held out: near 0 where everything gets one answer

A conversation has the mean length of its turns, and the highest `repeats` and `echoes_prompt` among them: its worst.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from operator import eq

MANNER = ("length", "repeats", "echoes_prompt", "distinct")
LOWER = ("repeats", "echoes_prompt")  # of which less is better; of `length` it depends, of `distinct` more
LONGEST_PATTERN = 128  # tokens
TIMES, LOOP = 3, 10  # a loop is a pattern so many times over, and so many tokens: `1000` and `}}}` are none
QUOTE = 5  # tokens; a shorter piece of the prompt is a word or a name


def manner_of(reply_ids: Sequence[int], stopped: bool, asked_ids: Sequence[int]) -> dict[str, float]:
    """`length`, `repeats` and `echoes_prompt` of a reply.

    Args:
        reply_ids: what was generated, up to and including its stop token where it stopped.
        stopped: whether the last of them is a stop token.
        asked_ids: the text of the user's last message.
    """
    words = list(reply_ids[:-1] if stopped else reply_ids)
    return {
        "length": float(len(reply_ids)),
        "repeats": round(repeats(words), 4),
        "echoes_prompt": round(echoes_prompt(words, asked_ids), 4),
    }


def repeats(ids: Sequence[int]) -> float:
    """Share of the tokens that lie in the longest loop, 0 to 1.

    A loop is a run in which each token equals the one `p` before it, for a pattern of `p` tokens (128 at most): the pattern at
    least three times over, its last time perhaps in part, and at least ten tokens in all.

    Args:
        ids: a reply without its stop token.
    """
    longest = 0
    for p in range(1, min(LONGEST_PATTERN, len(ids) // TIMES) + 1):
        needed = max(TIMES * p, LOOP) - p  # tokens one after the other that equal the one p before them
        if any(map(eq, ids[p::needed], ids[::needed])):  # one of so many is looked at, which mostly is enough
            same = bytes(map(eq, ids[p:], ids))
            run = max(map(len, same.split(b"\0")))
            longest = max(longest, run + p) if run >= needed else longest
    return longest / len(ids) if ids else 0.0


def echoes_prompt(ids: Sequence[int], asked_ids: Sequence[int]) -> float:
    """Share of a reply that is one piece of what was asked, 0 to 1: the longest run of tokens in both, over the reply's tokens.

    A run counts from five tokens, or where it is all that was asked. A reply that repeats the user's words and nothing else has
    1.0; a call that quotes a city has the city's share at most.

    Args:
        ids: a reply without its stop token.
        asked_ids: the user's last message.
    """
    if not ids or not asked_ids:
        return 0.0
    size = SequenceMatcher(None, asked_ids, ids, autojunk=False).find_longest_match().size
    return size / len(ids) if size >= min(QUOTE, len(asked_ids)) else 0.0


def distinct(prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]) -> float:
    """Different replies per different prompt, 0 to 1: where the format has collapsed, all prompts get the same few.

    It is a score of a whole set, and tasks with few right answers have a low one by nature; before and after are to be compared.

    Args:
        prompts, replies: ids, of equal number.
    """
    asked = {tuple(prompt) for prompt in prompts}
    return min(1.0, len({tuple(reply) for reply in replies}) / len(asked)) if asked else 0.0
