"""Every promise that can be checked before launch, all together in a `report`.

lengths      how long rows are, and their padding          cost         what a model computes over them
layouts      how they are laid out, and why                steps        optimiser steps, and what is in one
omitted      what is too long, or teaches nothing          duplicates   what stands in the data twice
advice       settings that are seldom meant                plan         what the run will take
tables       the counts, for a terminal                 diversity    how many different ones there are
together     engines, and what does not go with them
"""

from .layouts import Layout
from .plan import plan
from .report import PARTS, SAMPLE, Report, check

__all__ = ["PARTS", "SAMPLE", "Layout", "Report", "check", "plan"]
