"""What a device holds at the worst moment of a step, by plain arithmetic; nothing is measured, and no model is needed.

State: ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1): weights, gradients and AdamW's two moments, of which ZeRO-2 shards
the last two and ZeRO-3 and FSDP2 all three, beside what they gather to compute with. In what each stands is what this project does, see
`weights.loading.settle`: all that is trained is in float32, a frozen base in the recipe's dtype or in 4 bits. DeepSpeed computes with
16-bit weights and keeps a float32 copy among the optimiser's state, as in that paper. NF4: a byte for two weights, an 8-bit scale for 64 of
them and a float32 one for 256 scales (QLoRA, arXiv 2305.14314, section 3), as `bitsandbytes.functional.quantize_4bit` has them.

Activations: a curve in tokens, traced by `shapes` on the model itself. With gradient checkpointing that is the input of each layer and
one layer anew (Korthikanti et al. 2022, arXiv 2205.05198, section 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .model import EMBEDDING, SIZES, TAIL, Model, Weight, optimizer_bytes

ENGINES = ("ddp", "zero2", "zero3", "fsdp2")
BUCKET, LIVE = 5e8, 1e9  # elements: DeepSpeed's `reduce_bucket_size` and `stage3_max_live_parameters` where nobody sets them
TILE = (4096, 32768)  # positions and vocabulary of a tile of TRL's fused head
CONTEXT = 1e9  # bytes: CUDA's context, NCCL and the workspaces of cuBLAS; assumed


@dataclass(frozen=True)
class Setting:
    """How it is trained.

    Attributes:
        engine: one of `ENGINES`; on one device each is plain training.
        devices: how many hold a share of it.
        rows, length: of a micro-batch on one device, padding among them.
        supervised: positions of it that the head is shown.
        accumulation: micro-batches a step.
        checkpointing: gradient checkpointing.
        dtype: what is computed in: `bfloat16`, `float16` or `float32`.
        cuda: whether the head is TRL's fused one; elsewhere all logits of the supervised positions are there at once.
        optim: as transformers calls it.
        tensor: devices that share the work on a row (tensor parallelism); 1 for none.
    """

    engine: str
    devices: int
    rows: int
    length: int
    supervised: int
    accumulation: int = 1
    checkpointing: bool = False
    dtype: str = "float32"
    cuda: bool = False
    optim: str = "adamw_torch"
    tensor: int = 1


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the worst moment of a step, and which moment that is."""

    weights: float
    optimizer: float
    gradients: float
    activations: float
    loss: float
    buffers: float
    moment: str

    @property
    def total(self) -> float:
        return self.weights + self.optimizer + self.gradients + self.activations + self.loss + self.buffers


def needed(model: Model, setting: Setting) -> Memory:
    """The worst moment of a step.

    Raises:
        KeyError: the model was not traced for what the setting computes in.
    """
    return max(moments(model, setting), key=lambda memory: memory.total)


def moments(model: Model, setting: Setting) -> list[Memory]:
    """The moments in which most may be held: the way there, the loss, both ends of the way back, and when the optimiser steps."""
    weights, gradients, optimizer = state(model, setting)
    held, working = buffers(model, setting)
    run, share = model.passes[precision(setting), setting.checkpointing], parallel_share(setting.tensor)
    there, kept, back = (curve.at(setting.rows, setting.length) * share for curve in (run.forward, run.kept, run.backward))
    before = gradients if setting.accumulation > 1 or not plain(setting) else 0.0
    after = max(before, head_gradient(model) if plain(setting) else 0.0)
    loss = logits(model, setting)
    return [
        Memory(weights, optimizer, before, there, 0.0, held + working, "on the way forward"),
        Memory(weights, optimizer, before, kept, loss, held + working, "as the loss is computed"),
        Memory(weights, optimizer, after, back, 0.0, held + working, "on the way back"),
        Memory(weights, optimizer, gradients, max(0.0, back - kept), 0.0, held + working, "as the way back ends"),
        Memory(weights, optimizer, gradients, 0.0, 0.0, held, "as the optimiser steps"),
    ]


def plain(setting: Setting) -> bool:
    """Whether each device has the whole state, so that a gradient is nowhere until it is computed."""
    return setting.engine == "ddp" or setting.devices == 1


def precision(setting: Setting) -> str:
    """What `Model.passes` calls it: weights as they are stored, those under autocast (`mixed`), or cast by a sharded engine."""
    if setting.dtype == "float32" or (plain(setting) and not setting.cuda):
        return "stored"
    return "mixed" if plain(setting) else setting.dtype


def parallel_share(tensor: int) -> float:
    """Of the activations, with tensor parallelism: 10 of 34 parts are on each device (Korthikanti et al. 2022, equation 2)."""
    return (10 + 24 / tensor) / 34


def state(model: Model, setting: Setting) -> tuple[float, float, float]:
    """Weights, gradients and optimiser state of one device."""
    n, engine = setting.devices, setting.engine
    trained = [w for w in model.weights if w.trainable]
    if plain(setting):
        moments = sum(optimizer_bytes(w.numel, w.shape, setting.optim) for w in trained)
        return sum(w.bytes for w in model.weights) / setting.tensor, 4 * model.trainable / setting.tensor, moments / setting.tensor
    if engine == "fsdp2":
        return _fully_sharded(model, trained, setting)
    size = SIZES[setting.dtype]
    moments = (4 * model.trainable + sum(optimizer_bytes(w.numel, w.shape, setting.optim) for w in trained)) / n
    whole = sum(size * w.numel if w.stored in SIZES else w.bytes for w in model.weights)
    return (whole / setting.tensor if engine == "zero2" else whole / n), size * model.trainable / n, moments


def _fully_sharded(model: Model, trained: Sequence[Weight], setting: Setting) -> tuple[float, float, float]:
    """FSDP2: each tensor is cut along its first dimension, and the first device has the largest piece."""
    n = setting.devices
    weights = sum(w.bytes * w.rows(n) / max(1, w.numel) if w.shardable else w.bytes for w in model.weights)
    shards = [(w.rows(n), w.shape) for w in trained]
    return weights, sum(4 * numel for numel, _ in shards), sum(optimizer_bytes(numel, shape, setting.optim) for numel, shape in shards)


def buffers(model: Model, setting: Setting) -> tuple[float, float]:
    """What an engine needs beside state and activations: all the time, and while it computes.

    DDP has a second copy of the gradients in its buckets. ZeRO-2 and ZeRO-3 fill a bucket that they reduce; ZeRO-3 gathers weights up to
    its limit. FSDP2 has norm and head gathered, a block that it computes with and the next, and gradients of a block whole and on
    their way. 4-bit weights are made 16-bit ones a matrix at a time.
    """
    held = CONTEXT if setting.cuda else 0.0
    n, size = setting.devices, SIZES[setting.dtype]
    widest = max((w.numel for w in model.weights if w.stored not in SIZES), default=0) * size
    if n == 1:
        return held, widest
    if setting.engine == "ddp":
        return held + 4 * model.trainable / setting.tensor, widest
    bucket = size * min(BUCKET, model.trainable)
    if setting.engine == "zero2":
        return held, widest + bucket
    if setting.engine == "zero3":
        largest = max(w.numel for w in model.weights)
        return held, bucket + size * max(min(LIVE, model.parameters), largest) / setting.tensor
    return held, widest + gathered(model, size) / setting.tensor


def gathered(model: Model, size: int) -> float:
    """FSDP2's whole weights and gradients at a time, in bytes, of `size` each: norm and head, two blocks, and what they learn."""
    blocks: dict[int, list[int]] = {}
    for w in model.weights:
        if w.shardable:
            found = blocks.setdefault(w.part, [0, 0])
            found[0], found[1] = found[0] + w.numel, found[1] + w.numel * w.trainable
    tail, embedding = blocks.pop(TAIL, [0, 0]), blocks.pop(EMBEDDING, [0, 0])
    weights, learned = (max((b[i] for b in blocks.values()), default=0) for i in (0, 1))
    return size * max(sum(tail) + 2 * weights + 2 * learned, sum(tail) + 2 * sum(embedding))


def head_gradient(model: Model) -> float:
    """Bytes of the first gradient on the way back: of the head, which may be the embedding too."""
    return 4 * sum(w.numel for w in model.weights if w.part == TAIL and w.trainable)


def logits(model: Model, setting: Setting) -> float:
    """Bytes of the loss: see `loss.token_losses`.

    Off CUDA the logits of the supervised positions are there in what is computed in, as log-probabilities in float32, and twice more
    while their gradient is made. TRL's fused head has one tile of them, and the hidden states' gradient in float32.
    """
    n, size = setting.supervised, SIZES[setting.dtype]
    hidden = n * model.hidden * (size + 4)
    if not setting.cuda:
        return hidden + n * model.vocabulary * (12 if size == 4 else 12 + size)
    return hidden + min(n, TILE[0]) * min(model.vocabulary, TILE[1]) * size + head_gradient(model) / setting.tensor
