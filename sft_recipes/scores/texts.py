"""Answers in text: the same words, JSON, a number."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from typing import Any

FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL | re.IGNORECASE)
MARK = "####"  # GSM8K writes it before the final answer
NUMBER = re.compile(r"([-+\u2212]?)\s*[$€£]?\s*([-+\u2212]?)(\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*(\d+))?", re.ASCII)


def said(message: dict) -> str:
    """A message's content without the space around it."""
    return (message.get("content") or "").strip()


def exact_match(reply: dict, expected: dict) -> float:
    """Whether the turn stopped and its content is the reference's, but for space around it.

    Content alone: calls are `tool_call_exact`'s.
    """
    return float(bool(reply["stopped"]) and said(reply) == said(expected))


def json_valid(reply: dict, expected: dict) -> float:
    """Whether the turn stopped and its content is one JSON value (RFC 8259), perhaps in a ```json fence.

    Validity only: neither keys nor values are compared with the reference. NaN and Infinity, which Python reads, are no JSON.
    """
    if not reply["stopped"]:
        return 0.0
    text = said(reply)
    fenced = FENCED.fullmatch(text)
    try:
        json.loads(fenced[1] if fenced else text, parse_constant=_no_json, parse_int=str)  # an integer may be too long for Python's
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


def _no_json(constant: str) -> Any:
    raise ValueError(constant)


def numeric_answer(reply: dict, expected: dict) -> float:
    """Whether the turn stopped and the number after its last `####` is the reference's: GSM8K's convention (arXiv 2110.14168).

    The number is the first on the line that `####` begins (or, where nothing else is on it, the next). Commas are left out as
    in GSM8K's own code; currency signs before it and whatever follows it (`%`, a unit, a period) do not count; signs,
    decimals and fractions do, and are compared exactly: 0.50 is 1/2, 50% is 50. A reply without `####` scores 0. A reference
    without it has its last number taken; one without a number scores 0.
    """
    if not reply["stopped"] or MARK not in said(reply):
        return 0.0
    right = _after_mark(said(expected)) if MARK in said(expected) else _last(said(expected))
    answer = _after_mark(said(reply))
    return float(answer is not None and answer == right)


def _after_mark(text: str) -> Fraction | None:
    line = text.rpartition(MARK)[2].strip().partition("\n")[0]
    found = NUMBER.search(line)
    return _value(found) if found else None


def _last(text: str) -> Fraction | None:
    found = list(NUMBER.finditer(text))
    return _value(found[-1]) if found else None


def _value(found: re.Match[str]) -> Fraction | None:
    before, after, digits, divisor = found.groups()
    try:
        value = Fraction(digits.replace(",", "")) / Fraction(divisor or 1)
    except (ValueError, ZeroDivisionError):  # more digits than Python reads, or a division by 0
        return None
    return -value if (before or after) in ("-", "\u2212") else value
