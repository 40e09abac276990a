"""The page of a run, `report.html`, and the page of several runs side by side."""

from .compared import after, write_compared
from .page import write_report

__all__ = ["after", "write_compared", "write_report"]
