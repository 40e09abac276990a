"""The length policy: which turns of a conversation fit, and how one that is too long is told."""

from __future__ import annotations

from collections.abc import Sequence

from ..turns import Turn


def length(turn: Turn) -> int:
    """Tokens that the model sees when it has said this turn: its prompt, and itself with its stop token."""
    return len(turn.prompt_ids) + len(turn.completion_ids)


def fitting(turns: Sequence[Turn], max_length: int | None) -> list[Turn]:
    """The turns of at most `max_length` tokens, each with its prompt; `None` keeps all.

    Where turns continue one another this cuts after the last one that fits. Where the template rewrites history each turn
    stands alone, and a later one may fit where an earlier one did not.
    """
    return [turn for turn in turns if max_length is None or length(turn) <= max_length]


def told(source: str, turns: Sequence[Turn], max_length: int) -> str:
    """What of a conversation does not fit: where it stands, how many turns, which messages, tokens of the longest."""
    over = [turn.message_index for turn in turns if length(turn) > max_length]
    many = "no turn fits" if len(over) == len(turns) else f"{len(over)} of {len(turns)} turns {'does' if len(over) == 1 else 'do'} not fit"
    longest = max(map(length, turns))
    return f"{source}: {many}, {_messages(over, turns)}: {longest:,} tokens, max_length is {max_length:,}"


def _messages(over: list[int], turns: Sequence[Turn]) -> str:
    if over == [turn.message_index for turn in turns[-len(over) :]]:
        return f"from message {over[0]} on"
    *others, last = map(str, over)
    return f"messages {', '.join(others)} and {last}" if others else f"message {last}"
