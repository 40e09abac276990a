"""Tokenizer, base model, quantisation, adapter: `loading`; and for bases without a template: `templates`, `tokens`, `embedding`.

Which base it is, and the adapter on disk: `identity`, `adapters`.
"""

from .adapters import load_adapter, refuse_pickled, save_adapter, saved_adapter
from .identity import base_of, identity, refuse_another
from .loading import adapter, load_base, load_model, load_tokenizer, own_tokenizer, settle, trainable, unweighted

__all__ = [
    "adapter",
    "base_of",
    "identity",
    "load_adapter",
    "load_base",
    "load_model",
    "load_tokenizer",
    "own_tokenizer",
    "refuse_another",
    "refuse_pickled",
    "save_adapter",
    "saved_adapter",
    "settle",
    "trainable",
    "unweighted",
]
