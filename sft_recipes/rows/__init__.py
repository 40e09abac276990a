"""Turns to rows (promises 3 and 4): what the model sees in one forward pass.

separate     one sequence a row, as it is served      account      what went in, what is trained, what was left out
overlong     what is done with those too long         forest       equal beginnings stored once
splitting    trees that fit into rows                 boxes        few rows, long and short in each
layout       trees to columns                         packing      all of it: `pack`
grouping     length-grouped batches, without packing  dataset      rows by column
order        in which a window of a stream is trained
"""

from .account import IGNORED, Supervision, balance
from .dataset import dataset
from .overlong import fitting
from .packing import Packed, pack
from .separate import build_rows, paths, with_weights

__all__ = ["IGNORED", "Packed", "Supervision", "balance", "build_rows", "dataset", "fitting", "pack", "paths", "with_weights"]
