"""Merge, save, reload, prove: the deployed folder is the trained model (promise 7)."""

from .deployment import deploy, refuse
from .proof import prove
from .record import PROMPTS, Record, record, served_prompts

__all__ = ["PROMPTS", "Record", "deploy", "prove", "record", "refuse", "served_prompts"]
