"""Names and numbers for the tiny scale, in two halves that never meet.

Every open value (a name, a title, a number) belongs to the training half or to the held-out half, decided by a checksum of
its text. The pre-training corpus and the training conversations draw from the first, the held-out conversations from the
second, so a model that answers held-out questions has copied the value and not remembered it.
"""

from __future__ import annotations

import random
import zlib

ONSETS = "b br c cl d dr f g gr h j k l m n p pr qu r s sh st t th tr v w z".split()
VOWELS = "a e i o u ai ea io ou".split()
CODAS = ["", "", "", "l", "n", "r", "s", "t", "m", "nd", "rk"]
ITEMS = "lamp chair table book cup pen bag clock ladder basket bottle blanket mirror pillow kettle drum rope candle".split()
HELD_OUT_SHARE = 0.2


def is_held_out(value: object) -> bool:
    """Whether an open value belongs to the held-out half (a fifth of all values)."""
    return zlib.crc32(str(value).encode()) % 1000 < 1000 * HELD_OUT_SHARE


class Words:
    """Draws values from one half, reproducibly.

    Args:
        rng: the source of randomness; the same state gives the same values.
        held_out: which half.
    """

    def __init__(self, rng: random.Random, held_out: bool = False):
        self.rng, self.held_out = rng, held_out

    def _draw(self, make):
        while True:
            value = make()
            if is_held_out(value) == self.held_out:
                return value

    def name(self) -> str:
        """A name of two or three invented syllables, such as `Velmora`."""

        def make() -> str:
            rng = self.rng
            syllables = [rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.choice((2, 2, 3)))]
            return "".join(syllables).capitalize()

        return self._draw(make)

    def title(self) -> str:
        """Two names' worth of words, such as `Blue Velmora`, for songs, restaurants and events."""
        return self._draw(lambda: f"{self.name()} {self.name()}" if self.rng.random() < 0.5 else self.name())

    def item(self) -> str:
        """A thing to buy, such as `Velmora lamp`."""
        return self._draw(lambda: f"{self.name()} {self.rng.choice(ITEMS)}")

    def integer(self, low: int = 2, high: int = 999) -> int:
        return self._draw(lambda: self.rng.randint(low, high))

    def amount(self) -> float:
        """A sum of money with two decimals, the last one not zero, so that JSON and text spell it alike."""
        return self._draw(lambda: (self.rng.randint(1, 999) * 100 + self.rng.randint(0, 9) * 10 + self.rng.randint(1, 9)) / 100)

    def hour(self) -> str:
        return self._draw(lambda: f"{self.rng.randint(6, 23):02d}:{self.rng.randint(0, 59):02d}")

    def day(self) -> str:
        return self._draw(lambda: f"20{self.rng.randint(26, 39)}-{self.rng.randint(1, 12):02d}-{self.rng.randint(1, 28):02d}")

    def symbol(self) -> str:
        return self._draw(lambda: "".join(self.rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(4)))

    def phrase(self) -> str:
        """A short message, such as `bring 12 lamps to Velmora`."""
        rng = self.rng
        shapes = (
            lambda: f"bring {self.integer()} {rng.choice(ITEMS)}s to {self.name()}",
            lambda: f"meet {self.name()} at {self.hour()}",
            lambda: f"the {rng.choice(ITEMS)} is for {self.name()}",
            lambda: f"{self.name()} has paid {self.amount()}",
        )
        return self._draw(lambda: rng.choice(shapes)())
