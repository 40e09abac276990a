"""Experiment tracking: wandb, online where the person is logged in, else offline in the run folder. Never a prompt."""

from __future__ import annotations

import netrc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit


@contextmanager
def started(trainer: Any) -> Iterator[None]:
    """A wandb run for as long as the block lasts, on the first process, where the trainer reports to wandb.

    transformers' own callback logs into the run it finds, so starting it here decides mode and folder. Offline, one line
    tells how to sync it later.
    """
    if "wandb" not in trainer.args.report_to or not trainer.is_world_process_zero():
        yield
        return
    import wandb

    folder = trainer.run.folder
    folder.mkdir(parents=True, exist_ok=True)
    mode = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
    settings = wandb.Settings(silent=True, show_warnings=mode != "offline", console="off")
    wandb.setup(settings)  # also silences what wandb says outside of a run
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "sft-recipes"),
        name=trainer.args.run_name,
        dir=folder,
        mode=mode,  # type: ignore[arg-type]
        settings=settings,
    )
    if mode == "offline":
        print(f"wandb is offline; to upload this run later: wandb sync {os.path.relpath(run.dir + '/..')}")
    try:
        yield
    finally:
        run.finish()


def logged_in() -> bool:
    """Whether a wandb key is at hand, without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
