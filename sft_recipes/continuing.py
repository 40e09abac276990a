"""Whether a run folder holds a run that goes on, and whether that is the very run that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .recipe import RecipeError
from .run import Run, written

# What a run may differ in and still give the same weights; of devices and accumulation it is their product that counts
FREE = {
    "hardware",
    "overrides",
    "processes",
    "config.gradient_accumulation_steps",
    *(f"config.{name}" for name in "output_dir logging_dir run_name disable_tqdm report_to project save_total_limit".split()),
    *(f"config.{name}" for name in "dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor local_rank".split()),
    *(f"config.{name}" for name in "logging_steps logging_first_step push_to_hub hub_token ddp_timeout".split()),
}
SHOWN = 5  # differences in one message


def begun(run: Run) -> bool:
    """Whether the folder holds a run that has begun and has not come to its end."""
    return (run.folder / "recipe.json").is_file() and not finished(run)


def finished(run: Run) -> bool:
    """Whether the run came to its end: deployed, with the proof among its scores."""
    there = (run.folder / "recipe.json").is_file() and (run.folder / "metrics.json").is_file() and run.merged.is_dir()
    return there and bool(run.read("metrics.json").get("merge"))


def differences(run: Run, described: dict[str, Any]) -> list[str]:
    """What the run in the folder says otherwise than `run.describe` now does, `name: then, now`; of what changes the weights."""
    before = _flat(run.read("recipe.json"))
    now = _flat(written(described))
    names = [name for name in {**before, **now} if not _free(name) and before.get(name) != now.get(name)]
    found = [f"{name}: {before.get(name)!r} then, {now.get(name)!r} now" for name in names]
    rows = [_devices(said) for said in (before, now)]
    return found + ([f"micro-batches in a step: {rows[0]} then, {rows[1]} now"] if rows[0] != rows[1] else [])


def goes_on(run: Run, asked: str | bool | None, described: dict[str, Any], tell: Callable[[str], None]) -> bool:
    """Whether the run in the folder is continued.

    Args:
        run: the folder.
        asked: what `train` was told: to resume, to begin anew, or nothing (`None`): then it goes on if it is this very run.
        described: what `run.describe` now says.
        tell: takes a line for the person.

    Raises:
        RecipeError: it was to be, and there is none, or it has other data or another base.
    """
    if asked is None and not begun(run):
        return False
    if asked and not (run.folder / "recipe.json").is_file():
        raise RecipeError(f"nothing to resume: no run in {run.folder}")
    if asked is False:
        return False
    differ = differences(run, described)
    if asked is None and differ:
        tell(f"{run.folder} holds a run that was not finished, and another one: {shown(differ)}; it is moved aside")
        return False
    others = [line for line in differ if line.startswith(("data.", "base.", "chat_template"))]
    if others:
        raise RecipeError(f"{run.folder} cannot be continued: {shown(others)}; train anew with --no-resume, which moves it aside")
    if differ:
        tell(f"warning: continued as another run than it began, its weights are neither's: {shown(differ)}")
    return True


def shown(differ: list[str]) -> str:
    """Differences in one line."""
    more = f"; and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
    return "; ".join(line[:200] for line in differ[:SHOWN]) + more


def _devices(said: dict[str, Any]) -> Any:
    return int(said.get("processes") or 1) * int(said.get("config.gradient_accumulation_steps") or 1)


def _free(name: str) -> bool:
    return name in FREE or name.startswith(("overrides.", "config.fsdp", "config.deepspeed", "config.accelerator_config"))


def _flat(said: Any, name: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    if not isinstance(said, dict):
        return {name: said}
    return {key: value for inner, part in said.items() for key, value in _flat(part, f"{name}.{inner}" if name else str(inner)).items()}
