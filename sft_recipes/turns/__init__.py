"""A conversation and a tokenizer to supervised turns (promises 1 and 2).

rendering    the chat template, rendered as it is served       prefixes     all of them, cut out of one rendering
probes       what a template takes, and what it leaves out     closing      how it ends a turn
mending      what would align a turn with its prompt           encoding     texts to ids, each piece once
supervisor   all of it: `supervise`                            dataset      the same for many, with a cache
turn         the result
"""

from .supervisor import Supervisor, learned, supervise
from .turn import Turn, stop_ids

__all__ = ["Supervisor", "Turn", "learned", "stop_ids", "supervise"]
