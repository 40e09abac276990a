"""Every promise that can be checked before launch, all together in a `report`.

lengths      how long rows are, and their padding          cost         what a model computes over them
layouts      how they are laid out, and why                steps        optimiser steps, and what is in one
omitted      what is too long, or teaches nothing          duplicates   what stands in the data twice
advice       settings that are seldom meant                diversity    how many different ones there are
tables       the counts, for a terminal
together     engines, and what does not go with them
"""

from .layouts import Layout
from .report import PARTS, SAMPLE, Report, check

__all__ = ["PARTS", "SAMPLE", "Layout", "Report", "check"]
