"""What a model computes over rows, predicted from shapes alone: layouts are compared by it, nothing is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn


@dataclass(frozen=True)
class Work:
    """One layout of some conversations.

    Attributes:
        tokens: positions that go through the model, padding among them.
        flops: floating-point operations of one forward pass over them; a backward pass multiplies those of every layout alike.
    """

    tokens: int
    flops: int


@dataclass(frozen=True)
class Cost:
    """What a token, a supervised token and a visible pair cost in a model.

    Two operations for each parameter of each matrix that a token passes (Kaplan et al. 2020, arXiv 2001.08361, section 2.1),
    and four for each pair of tokens of which one sees the other, times the width of the layer's heads together (PaLM, arXiv
    2204.02311, appendix B, which has twelve with the backward pass). The head is shown supervised tokens alone, as in `loss`.
    An adapter, a vision tower, norms and activations are left out.

    Attributes:
        matrices: parameters of the matrices, all experts of a layer counted, though a token passes a few of them.
        head: those of the language-model head.
        widths: by sliding window in tokens, `None` for full attention: heads times their width, of all such layers together.
        experts: whether there are any, so that matrices weigh more here than they do, and attention less.
    """

    matrices: int
    head: int
    widths: Mapping[int | None, int]
    experts: bool

    def separate(self, lengths: Sequence[int], supervised: int) -> Work:
        """Rows that each stand alone, in whatever row of the batch.

        Args:
            lengths: positions of each row, with its padding, which is computed like all else.
            supervised: tokens that carry loss.
        """
        pairs = {window: _triangles(np.asarray(lengths, dtype=np.int64), window) for window in self.widths}
        return self._work(sum(lengths), supervised, pairs)

    def tree(self, rows: Sequence[Mapping[str, Any]], supervised: int) -> Work:
        """Packed rows, as `rows.pack` gives them: a token at depth p of its tree sees p + 1 tokens, or those in its window."""
        tokens, pairs = 0, dict.fromkeys(self.widths, 0)
        for row in rows:
            seen = row["position_ids"] + np.int64(1)
            tokens += len(seen)
            for window in pairs:
                pairs[window] += int((seen if window is None else np.minimum(seen, window)).sum())
        return self._work(tokens, supervised, pairs)

    def _work(self, tokens: int, supervised: int, pairs: Mapping[int | None, int]) -> Work:
        attention = sum(4 * width * pairs[window] for window, width in self.widths.items())
        return Work(tokens, 2 * (tokens * self.matrices + supervised * self.head) + attention)


def _triangles(lengths: np.ndarray, window: int | None) -> int:
    """Visible pairs of rows in which each token sees itself and those before it, as far as the window reaches."""
    hidden = np.maximum(lengths - (window or lengths), 0)
    return int((lengths * (lengths + 1) // 2 - hidden * (hidden + 1) // 2).sum())


def cost(model: Any) -> Cost:
    """What a model costs.

    Args:
        model: may be on the meta device; all its layers are attention, as `attention.sharing.obstacle` has it, else it is wrong.
    """
    decoder = model.get_decoder()
    tables = {id(module.weight) for module in decoder.modules() if isinstance(module, nn.Embedding)}
    matrices = [p for p in decoder.parameters() if p.dim() > 1 and id(p) not in tables]
    head = model.get_output_embeddings()
    experts = any(p.dim() > 2 for p in matrices)
    return Cost(sum(p.numel() for p in matrices), 0 if head is None else head.weight.numel(), _widths(decoder), experts)


def _widths(decoder: Any) -> dict[int | None, int]:
    """Heads times their width by window; layers without kinds all have the window that the configuration has, if any."""
    config, found = decoder.config, dict[int | None, int]()
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    for module in decoder.modules():
        width = getattr(module, "head_dim", None) or getattr(module, "qk_head_dim", None)
        if isinstance(width, int) and isinstance(getattr(module, "layer_idx", None), int):
            seen = window if not kinds or kinds[module.layer_idx] == "sliding_attention" else None
            found[seen] = found.get(seen, 0) + config.num_attention_heads * width
    return found
