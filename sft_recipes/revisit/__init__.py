"""A finished run, opened again from its folder: merged anew, judged beside other models, talked to."""

from .opening import merge, refuse_changed, reopen

__all__ = ["merge", "refuse_changed", "reopen"]
