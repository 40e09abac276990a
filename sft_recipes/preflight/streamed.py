"""What does not go with training from a stream, each with its reason and its mend."""

from __future__ import annotations

from typing import Any

from ..recipe import Recipe
from ..rows.order import SAMPLING


def faults(recipe: Recipe, config: Any) -> list[str]:
    """One line for each fault of a recipe that streams its data; none where it does not.

    Args:
        recipe, config: resolved.
    """
    if not recipe.streaming:
        return []
    found = []
    if config.max_steps <= 0:
        found.append("streaming: nobody knows how long a stream is before it has been read; say how many steps to take, --max_steps 1000")
    if recipe.mix > 0:
        found.append(
            f"streaming: mix is {recipe.mix:g}, a share of all that is trained, which is not known before it was read; "
            "leave mix at 0, or put the data to be replayed into the stream"
        )
    if config.dataloader_num_workers > 0:
        found.append(
            f"streaming: each of {config.dataloader_num_workers} data workers would read and prepare the whole stream for itself; "
            "leave dataloader_num_workers at 0"
        )
    if config.train_sampling_strategy not in SAMPLING:
        found.append(
            f"streaming: train_sampling_strategy is '{config.train_sampling_strategy}', which looks at all rows at once; "
            f"it can be {', '.join(SAMPLING[:-1])} or {SAMPLING[-1]}"
        )
    return found
