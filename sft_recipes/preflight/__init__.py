"""Every promise that can be checked before launch: the `report`, with counts of `lengths` and `duplicates`, and `advice`."""

from .layouts import Layout
from .report import PARTS, SAMPLE, Report, check, plan

__all__ = ["PARTS", "SAMPLE", "Layout", "Report", "check", "plan"]
