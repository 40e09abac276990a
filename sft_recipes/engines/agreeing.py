"""What every process has to hold for the same, though each has found it out for itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback


class Agreed(TrainerCallback):
    """After each checkpoint all processes name the same one as the best, and name it as soon as it is there.

    transformers 5.23 (`Trainer._save_checkpoint`) lets each process look whether its folder exists before anything of FSDP's shards is
    written. Who looks first knows of none, who looks later may see the one that another is making: at the end some load the best
    weights and some do not, and wait for each other for ever; or nobody loads them.
    """

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.best_global_step}"
        found = [str(folder) if state.best_global_step and folder.is_dir() else state.best_model_checkpoint]
        if args.world_size > 1:
            broadcast_object_list(found)  # the first process has written into it by now
        state.best_model_checkpoint = found[0]
