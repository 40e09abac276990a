"""A recipe's name to a resolved recipe and its configuration."""

from .configuration import RecipeConfig as RecipeConfig
from .configuration import hush as hush
from .resolving import Resolved as Resolved
from .resolving import resolve as resolve
