"""A run that is told to end: what it has learned is saved first.

SIGTERM (a machine that is taken away, `scancel`, a container's end), SIGUSR1 (SLURM's `--signal`) and SIGINT (Ctrl-C) only leave a
note. Training reads it after each step, an evaluation after each batch and each generated token; see `lasting`. A second signal
ends the process at once. A spot machine's warning does the same, see `spot`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

CODE = 75  # of the exit: EX_TEMPFAIL of sysexits.h, which nothing else here gives: start it again, and it goes on
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
TOGETHER = 1.0  # seconds: a launcher passes on the signal that its processes have had from the terminal themselves


class Stopped(BaseException):
    """The run has ended because it was told to; not an `Exception`, so that nothing on the way takes it for a failure."""


class Stop:
    """Whether this process has been told to end.

    Attributes:
        asked: the signal's name; empty until there was one.
    """

    def __init__(self) -> None:
        self.asked = ""
        self._since, self._at_once = 0.0, False
        self._listening, self._warning = False, ""
        self._foretold = False  # what was heard was a warning, and the signal itself is still to come

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take note of signals within the block, where it is the main thread's; as before afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._heard) for number in SIGNALS}
        self._listening = True
        try:
            yield
        finally:
            self._listening = False
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block nothing has to be finished: a signal raises `Stopped`, one that has come already too."""
        self._at_once = True
        try:
            if self.asked:
                raise Stopped(self.asked)
            yield
        finally:
            self._at_once = False

    def warned(self, by: str) -> None:
        """From another thread: as a signal, but for what follows it, which is what it warned of and not a second one.

        Args:
            by: what gave the warning, in words.
        """
        if self._listening:
            self._warning = by
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.asked = self.asked or by

    def _heard(self, number: int, frame: FrameType | None) -> None:
        now, warning, self._warning = time.monotonic(), self._warning, ""
        if self.asked and now - self._since < TOGETHER:
            return
        if self.asked and not self._foretold:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.asked, self._since, self._foretold = warning or signal.Signals(number).name, now, bool(warning)
        if self._at_once:
            raise Stopped(self.asked)
