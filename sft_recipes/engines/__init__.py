"""Several processes as one run, on the engines of accelerate.

launched   which engine and how many processes were asked for        sharding   weights in parts, on CPUs too, and what is wrapped
whole      what was trained, whole again on the first process        waiting    for what the first process does alone
"""

from .launched import Engine, launched
from .sharding import ask_for_parts, in_parts, late, layers, machine, place, ready
from .waiting import wait
from .whole import gathered, rebuilt, unparted

__all__ = [
    "Engine",
    "ask_for_parts",
    "gathered",
    "in_parts",
    "late",
    "launched",
    "layers",
    "machine",
    "place",
    "ready",
    "rebuilt",
    "unparted",
    "wait",
]
