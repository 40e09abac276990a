"""Waiting for what the first process does alone: merging and proving takes minutes to hours, and is no fault."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch

LONGEST = timedelta(hours=12)  # of a merge and its proof; NCCL's own barrier gives up after `ddp_timeout`, 30 minutes


def wait(accelerator: Any) -> None:
    """Wait until every process is here, without a time-out that a long merge would run into.

    Over gloo, on the CPU: a barrier of NCCL is a kernel that its watchdog ends after `ddp_timeout`, which has to stay short, as it
    tells a collective that hangs in training. A process that dies meanwhile takes the others with it, as torchrun ends them.

    Args:
        accelerator: accelerate's.
    """
    if accelerator.num_processes == 1:
        return
    group = torch.distributed.new_group(backend="gloo", timeout=LONGEST)
    try:
        torch.distributed.barrier(group=group)
    finally:
        torch.distributed.destroy_process_group(group)
