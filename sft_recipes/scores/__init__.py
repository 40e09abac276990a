"""Ready-made scores for a recipe's `score(reply, expected)` hook, and what is measured of every reply.

`reply` is what the model said, parsed: an assistant message with `stopped` (it halted by itself). `expected` is the
reference message with `tools`, the JSON schemas on offer, `asked`, the text before it, and the row's `tests` where it has
some. Every score is a float, 1.0 for right, and 0.0 for a reply that was cut at the length limit.
"""

from .calls import tool_call_exact, tool_call_valid
from .manner import LOWER, MANNER, distinct, echoes_prompt, manner_of, repeats
from .programs import python_passes
from .texts import exact_match, json_valid, numeric_answer

__all__ = [
    "LOWER",
    "MANNER",
    "distinct",
    "echoes_prompt",
    "exact_match",
    "json_valid",
    "manner_of",
    "numeric_answer",
    "python_passes",
    "repeats",
    "tool_call_exact",
    "tool_call_valid",
]
