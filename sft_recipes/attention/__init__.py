"""How the tokens of a packed row see each other (promise 4): each its own path, and nothing else.

layout       which token may attend to which          pieces       the same as rectangles, for a kernel
blocks       the same in blocks, for FlexAttention    ragged       a kernel for the CPU
interface    all of it behind transformers' attention
sharing      which models can, and the proof on the model at hand
"""

from .interface import install, laid_out
from .layout import Layout, path_lengths

__all__ = ["Layout", "install", "laid_out", "path_lengths"]
