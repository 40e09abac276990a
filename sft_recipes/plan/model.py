"""The numbers of a model that its memory follows from: parameters, in what they are stored, and what a pass holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes
BLOCK, SCALES, CODES = 64, 256, 1092  # NF4: weights a scale, scales a scale, bytes of the two tables of a tensor and its offset
BLOCK_8BIT, LEAST_8BIT = 256, 4096  # bitsandbytes' 8-bit optimisers: values a scale, and the smallest tensor that they take
EMBEDDING, TAIL = -2, -1  # a weight's `part` outside of the blocks: the input embedding, and norm and head (a tied embedding with them)


@dataclass(frozen=True)
class Weight:
    """One parameter.

    Attributes:
        shape: of its tensor; what is quantised keeps its own here.
        stored: `float32`, `bfloat16`, `float16`, `nf4` (with double quantisation), `fp4`-like `4bit` without it, or `int8`.
        trainable: whether it learns.
        part: the block of the decoder that it is in, or `EMBEDDING` or `TAIL`.
        shardable: FSDP2 leaves 4-bit weights that lie in integers whole on each device.
    """

    shape: tuple[int, ...]
    stored: str
    trainable: bool
    part: int
    shardable: bool = True

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> float:
        """On one device, whole."""
        return stored_bytes(self.numel, self.stored)

    def rows(self, devices: int) -> int:
        """Elements of the largest shard, cut along the first dimension as FSDP2 cuts."""
        if not self.shape:
            return 1
        return math.ceil(self.shape[0] / devices) * math.prod(self.shape[1:])


@dataclass(frozen=True)
class Curve:
    """Bytes by the size of a micro-batch: `constant + rows * (per_token * length + per_pair * length ** 2)`."""

    constant: float
    per_token: float
    per_pair: float = 0.0

    def at(self, rows: int, length: int) -> float:
        return self.constant + rows * (self.per_token * length + self.per_pair * length**2)


@dataclass(frozen=True)
class Pass:
    """One pass of the decoder forward and back, without parameters and their gradients.

    Attributes:
        kept: held between the two, while the loss is computed.
        forward, backward: the most on either way.
    """

    kept: Curve
    forward: Curve
    backward: Curve


@dataclass(frozen=True)
class Model:
    """The numbers of a model with its adapter.

    Attributes:
        weights: every parameter once.
        vocabulary, hidden: sizes of the head.
        passes: by (what `precision` says, with gradient checkpointing).
        counted: how the passes were found, in words; empty where they were traced.
    """

    weights: tuple[Weight, ...]
    vocabulary: int
    hidden: int
    passes: Mapping[tuple[str, bool], Pass]
    counted: str = ""

    @property
    def parameters(self) -> int:
        return sum(w.numel for w in self.weights)

    @property
    def trainable(self) -> int:
        return sum(w.numel for w in self.weights if w.trainable)


def stored_bytes(numel: int, stored: str) -> float:
    """Bytes of a tensor of so many elements."""
    if stored in SIZES:
        return numel * SIZES[stored]
    if stored == "int8":
        return numel  # its scale a row is a thousandth of it
    scales = math.ceil(numel / BLOCK)
    of_scales = scales + 4 * math.ceil(scales / SCALES) if stored == "nf4" else 4 * scales
    return math.ceil(numel / 2) + of_scales + CODES


def optimizer_bytes(numel: int, shape: Sequence[int], optim: str) -> float:
    """State of one trained tensor: AdamW's two moments in float32, unless the optimiser's name says what else."""
    name = optim.lower()
    if "8bit" in name and numel >= LEAST_8BIT:
        copies = 1 if "lion" in name else 2
        return copies * (numel + 4 * math.ceil(numel / BLOCK_8BIT))
    if "adafactor" in name:
        return 4 * (sum(shape) if len(shape) > 1 else numel)
    if name == "sgd":
        return 0
    return (4 if "lion" in name or "rmsprop" in name or "adagrad" in name else 8) * numel
