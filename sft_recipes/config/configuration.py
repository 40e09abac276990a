"""`RecipeConfig`, and the configuration of a recipe's run. Half of the room that knows TRL; the other is `step`."""

from __future__ import annotations

import logging
import math
import os
import sys
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from huggingface_hub import constants
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from trl import SFTConfig

from ..engines import machine as for_engine
from ..optim.schedule import FLOOR
from ..recipe import Recipe, RecipeError, unknown_name
from ..scores import LOWER


@dataclass
class RecipeConfig(SFTConfig):
    """TRL's `SFTConfig` with this project's defaults; every field is upstream's and means what it means there.

    AdamW with betas (0.9, 0.95) and decay 0.1, on matrices only; a warm-up that begins above 0, then cosine to a tenth of the
    peak; no NaN hidden from the logged loss; rows of similar length share a batch; an evaluation and a checkpoint an epoch, of which
    the best and the newest are kept; callbacks (early stopping) that go on where they were in a resumed run; wandb.
    """

    adam_beta2: float = 0.95
    weight_decay: float = 0.1
    lr_scheduler_type: str = "cosine_with_min_lr"
    lr_scheduler_kwargs: dict | str | None = None
    greater_is_better: bool | None = None
    logging_nan_inf_filter: bool = False
    train_sampling_strategy: str = "group_by_length"
    eval_strategy: str = "epoch"
    eval_steps: float | None = 0.1
    save_strategy: str = "epoch"
    save_steps: float = 0.1
    save_total_limit: int | None = 2
    restore_callback_states_from_checkpoint: bool = True
    project: str = "sft-recipes"  # of trackio
    report_to: None | str | list[str] = "wandb"  # noqa: RUF036  HfArgumentParser wants None first

    def __post_init__(self) -> None:
        if self.lr_scheduler_type == "cosine_with_min_lr" and not self.lr_scheduler_kwargs:
            self.lr_scheduler_kwargs = {"min_lr_rate": FLOOR}
        best = (self.metric_for_best_model or "").removeprefix("eval_")
        if self.greater_is_better is None and best in LOWER:  # upstream knows it of losses alone
            self.greater_is_better = False
        if self.greater_is_better is None and best == "length":
            raise ValueError("metric_for_best_model is length, and neither more nor less is better of itself; say greater_is_better")
        super().__post_init__()


def wanted(name: str, recipe: Recipe, given: dict[str, Any], arm: str) -> dict[str, Any]:
    """The fields of the configuration: what fits the machine, the recipe's own, what the person changed.

    Args:
        name: the recipe's.
        recipe: whose `config` it is.
        given: fields of `RecipeConfig` that the person changed.
        arm: of its ablation, but for the first.
    """
    gpu = torch.cuda.is_available()
    terminal = sys.stderr.isatty()
    machine = dict(
        **for_engine(gpu),
        bf16=gpu and recipe.dtype == "bfloat16",
        gradient_checkpointing=gpu,
        dataloader_pin_memory=gpu,
        disable_tqdm=not terminal,
    )
    place = dict(output_dir=f"runs/{name}", run_name=name)
    often = {"eval_strategy": "steps"} if recipe.streaming else {}  # to transformers the whole stream is one epoch
    wanted = {**machine, **place, **often, **recipe.config, **given}
    if arm:
        wanted |= {key: f"{wanted[key]}/{arm}" for key in place}
    return {**_best_kept(wanted, recipe), **wanted}


def _best_kept(wanted: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """What is left open of evaluations and checkpoints: they fall together, and the best by the recipe's own score is kept.

    Where they were told not to fall together, what the last step gives is deployed.
    """
    judged, every = wanted.get("eval_strategy", RecipeConfig.eval_strategy), wanted.get("eval_steps", RecipeConfig.eval_steps)
    follows = {"save_strategy": judged, "save_steps": every} if judged != "no" else {}
    found = {**follows, **wanted}
    together = judged != "no" and (found["save_strategy"], found["save_steps"] if judged == "steps" else every) == (judged, every)
    kept = together or (judged != "no" and found["save_strategy"] == "best")
    return {**follows, "load_best_model_at_end": kept, "metric_for_best_model": recipe.primary}


def configured(wanted: dict[str, Any]) -> RecipeConfig:
    """The configuration of these fields.

    Raises:
        RecipeError: values that do not hold, or that would change what is promised.
    """
    try:
        config = RecipeConfig(**wanted)
    except Exception as error:  # every library that it configures has checks, and errors, of its own
        raise RecipeError(f"the configuration does not hold: {error}") from error
    faults = [f"{key} is {getattr(config, key)}, it must be above 0" for key in _POSITIVE if not _positive(getattr(config, key))]
    faults += [f"{key} is {getattr(config, key)}: {why}" for key, (value, why) in _FIXED.items() if getattr(config, key) != value]
    faults += _untracked(config.report_to)
    if faults:
        raise RecipeError(*faults)
    return config


def _untracked(names: Any) -> list[str]:
    """Trackers that transformers does not know, and those of ours that are not installed."""
    unknown = [unknown_name("report_to", name, INTEGRATION_TO_CALLBACK) for name in names if name not in INTEGRATION_TO_CALLBACK]
    missing = [name for name in names if name in ("wandb", "trackio", "tensorboard") and find_spec(name) is None]
    return unknown + [f"report_to is '{name}', which is not installed: pip install {name}" for name in missing]


_POSITIVE = ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size", "max_length")


_THE_LOSS = "the loss here is the mean negative log-likelihood over the supervised tokens of a step, on all devices together; leave it"
# Fields of upstream that would change what is promised, and would be read by nothing here
_FIXED = {
    "loss_type": ("nll", _THE_LOSS),
    "label_smoothing_factor": (0.0, _THE_LOSS),
    "average_tokens_across_devices": (True, _THE_LOSS),
    "enable_jit_checkpoint": (False, "a run that is told to end saves by itself; two that do so would write into each other"),
    "trust_remote_code": (False, "code of a model's repository is never run here; take a model that transformers itself knows"),
    "dataloader_drop_last": (False, "the rows of the last batch would not be trained, or not be judged"),
}


def _positive(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and 0 < value < math.inf)


def hush() -> None:
    """Silence what a person can do nothing about; called when work begins, never at import.

    No run announces itself to anybody (TRL's usage ping), none asks a service to convert a model's pickles (transformers does, of
    a model without safetensors), transformers and PEFT keep their advice to errors, and bars are drawn in terminals only.
    """
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    constants.HF_HUB_DISABLE_TELEMETRY = True
    transformers.logging.set_verbosity_error()
    for library in ("trl", "peft", "accelerate"):
        logging.getLogger(library).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=library)
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # of a file that cannot be read it tells several times; we do once
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
