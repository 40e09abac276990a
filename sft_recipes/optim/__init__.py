"""How the weights are moved (promise 6): decay groups, the schedule, and the noise of NEFTune."""

from .groups import parameter_groups

__all__ = ["parameter_groups"]
