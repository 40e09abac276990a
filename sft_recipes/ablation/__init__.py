"""The comparison of runs that a recipe declares as its ablation: its `arms`, their `comparison`, the `plot` of it."""

from .arms import arms, compared, pending
from .comparison import Comparison, Trained, compare, over_steps, parts
from .plot import draw, picture

__all__ = ["Comparison", "Trained", "arms", "compare", "compared", "draw", "over_steps", "parts", "pending", "picture"]
