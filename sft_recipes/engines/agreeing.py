"""What every process has to hold for the same, though each has found it out for itself."""

from __future__ import annotations

from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback


class Agreed(TrainerCallback):
    """After each checkpoint all processes name the same one as the best: that of the first process.

    transformers 5.23 (`Trainer._save_checkpoint`) names it where its folder exists, which the first process is only about to make: a
    process that looks too early knows of none. At the end it would not load the best weights while the others do, and go on with
    other weights (DDP), or leave the others waiting (FSDP2).
    """

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found = [state.best_model_checkpoint]
        if args.world_size > 1:
            broadcast_object_list(found)
        state.best_model_checkpoint = found[0]
