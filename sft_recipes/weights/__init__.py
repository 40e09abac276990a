"""Tokenizer, base model, quantisation, adapter: `loading`; and for bases without a template: `templates`, `tokens`, `embedding`."""

from .loading import adapter, load_base, load_model, load_tokenizer, settle, unweighted

__all__ = ["adapter", "load_base", "load_model", "load_tokenizer", "settle", "unweighted"]
