"""What of the data is not trained: faults and warnings about conversations that are too long or have nothing to learn."""

from __future__ import annotations

import math

from ..prepare import Part
from ..rows import Supervision


def lost(name: str, part: Part, max_lost: float) -> tuple[list[str], list[str]]:
    """Faults and warnings, one line each, about conversations that are too long or have nothing to learn; the counts list them all.

    Args:
        name: of the part, `train` or `held_out`.
        max_lost: share of the part's supervised tokens above which their loss is a fault, 0 to 1.
    """
    account, said = part.supervision, f"{len(part.conversations):,} {name.replace('_', '-')} conversations"
    long = [_too_long(account, said, max_lost)] if account.trimmed or account.dropped else []
    idle = f'{len(account.unsupervised):,} of {said} teach nothing, every assistant message has "train": false'
    warnings = [f"{idle}: {_first(account.unsupervised)}"] if account.unsupervised else []
    return (long, warnings) if account.lost_share > max_lost else ([], long + warnings)


def _too_long(account: Supervision, said: str, max_lost: float) -> str:
    """How many of the conversations are too long, what that costs, what helps, and the first places."""
    places, became = account.trimmed + account.dropped, {"trimmed": account.trimmed, "dropped whole": account.dropped}
    text = f"{len(places):,} of {said} are too long ({', '.join(f'{len(found):,} {what}' for what, found in became.items() if found)})"
    text += f", {account.lost_share:.2%} of the supervised tokens are lost"
    ways = f"--max_length {account.longest} keeps all"
    if account.lost_share > max_lost:
        text += f", max_lost is {max_lost:.2%}"
        ways += f", --max_lost {math.ceil(account.lost_share * 100) / 100:g} allows it"
    return f"{text}; {ways}: {_first(places)}"


def _first(places: list[str], shown: int = 3) -> str:
    more = f"; and {len(places) - shown:,} more, listed by check --json" if len(places) > shown else ""
    return "; ".join(places[:shown]) + more
