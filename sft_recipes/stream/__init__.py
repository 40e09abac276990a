"""A stream of conversations to the rows that a trainer asks for, one after the other, window by window.

rows      a window made into rows, and the stream of them    later     windows behind the first, made as that was
account   what was read and trained so far
"""

from .account import Account
from .rows import Broken, Order, RowStream

__all__ = ["Account", "Broken", "Order", "RowStream"]
