"""Checkpoints that can be trusted: written whole or not at all, known by what is in them, and the newest good one found again."""

from .folder import Found, good, name, newest, put, rotate, saving
from .manifest import digests, fault, files, seal
from .space import deployed, refuse_full, room_for, written

__all__ = [
    "Found",
    "deployed",
    "digests",
    "fault",
    "files",
    "good",
    "name",
    "newest",
    "put",
    "refuse_full",
    "room_for",
    "rotate",
    "saving",
    "seal",
    "written",
]
