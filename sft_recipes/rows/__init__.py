"""Turns to rows (promises 3 and 4): what the model sees in one forward pass.

separate     one sequence a row, as it is served      account      what went in, what is trained, what was left out
dataset      rows by column
"""

from .account import IGNORED, Supervision
from .dataset import dataset
from .separate import build_rows, paths

__all__ = ["IGNORED", "Supervision", "build_rows", "dataset", "paths"]
