"""`LastingTrainer`: a `StepTrainer` that survives its machine.

A checkpoint is whole or not there, and holds everything that the rest of the run depends on, so that a run that was killed and
continued gives the same weights, bit for bit. A run that is told to end finishes its step, saves and leaves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import SaveStrategy

from .. import checkpoints
from ..recipe import RecipeError
from ..stopping import Stop, Stopped
from .step import StepTrainer

PROGRESS = "progress.json"  # in a checkpoint, what transformers does not keep


class LastingTrainer(StepTrainer):
    """A `StepTrainer` whose checkpoints can be trusted and which stops when it is told to.

    Args:
        **kwargs: as `StepTrainer` takes them.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.stop = Stop()
        self.continued_from: Path | None = None
        self._place: Path | None = None  # where a checkpoint is being built
        self._due = {"evaluate": False, "save": False}  # at this step, and not done yet
        self._room = checkpoints.written(self.model, self._recipe, self.args)
        self.add_callback(_Begun(self))

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return Path(str(self.args.output_dir))

    # Saving

    def _get_output_dir(self, trial: Any) -> str:
        """Upstream writes into `checkpoint-N` of this; while it saves, that is beside the place where it will be."""
        return str(self._place) if self._place else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Upstream's checkpoint with `progress.json`, built beside its place, flushed, sealed with a manifest and renamed.

        Raises:
            RecipeError: the disk is full, or was full in the middle; the checkpoints that are there stay as they are.
        """
        first, name = self.args.should_save, checkpoints.name(self.state.global_step)
        if first:
            checkpoints.refuse_full(self.checkpoints, self._room["checkpoint"], name)
        with _disk_faults(self.checkpoints / name, self._kept), checkpoints.saving(self.checkpoints, first) as self._place:
            try:
                super()._save_checkpoint(model, trial)
                self._finish(self._place / name)
            finally:
                self._place = None
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(self.checkpoints / name))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._place is None:  # else it is not in its place yet
            super()._push_from_checkpoint(checkpoint_folder)

    def _finish(self, built: Path) -> None:
        """From upstream's files to a checkpoint that can be trusted, in its place; the oldest one leaves."""
        progress, first = self._progress(), self.args.should_save
        target, limit = self.checkpoints / built.name, self.args.save_total_limit
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(target)  # upstream saw it where it was built
        if first:
            (built / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle with every token in it, which nothing reads
            self.state.save_to_json(str(built / TRAINER_STATE_NAME))
            (built / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
        self.accelerator.wait_for_everyone()
        names, processes = checkpoints.files(built), self.accelerator.num_processes
        mine = checkpoints.digests(built, names[self.accelerator.process_index :: processes])
        found = {name: digest for part in gather_object([mine]) for name, digest in part.items()}
        if first:
            checkpoints.seal(built, found)
            checkpoints.put(built, self.checkpoints)
            best = self.state.best_model_checkpoint
            checkpoints.rotate(self.checkpoints, limit, Path(best) if best else None)

    def refuse_full(self) -> None:
        """Before anything is trained: whether the disk holds what the run will write.

        Raises:
            RecipeError: it does not.
        """
        if self.args.should_save and self.args.save_strategy != SaveStrategy.NO:
            checkpoints.refuse_full(self.checkpoints, self._room["in_all"], "the run")

    # Continuing

    def _progress(self) -> dict[str, Any]:
        """What the rest of the run depends on beside upstream's state, as plain data; all processes call this together."""
        loss = self.accelerator.reduce(self._tr_loss.detach().clone().double(), "mean").item()
        return {
            "due": {"evaluate": self._evaluation_due(), "save": self._due["save"]},
            "loss_since_log": {"sum": loss, "from": self._globalstep_last_logged},
            "tally": self._tally.everywhere(lambda mine: self.accelerator.reduce(mine, "sum"), self.accelerator.device),
            "guard": self.guard.progress(),
            "unmoved": self.unmoved,
        }

    def take_up(self, progress: dict[str, Any]) -> None:
        """Go on from what `_progress` gave, on however many processes: sums are the first one's, means everyone's."""
        self._due = dict(progress["due"])
        self._tr_loss.fill_(progress["loss_since_log"]["sum"])
        self._globalstep_last_logged = progress["loss_since_log"]["from"]
        self._tally.sums = {name: value if self.accelerator.is_main_process else 0.0 for name, value in progress["tally"].items()}
        self.guard.take_up(progress["guard"])
        self.unmoved = progress["unmoved"]

    def newest_checkpoint(self) -> Path | None:
        """The newest good checkpoint of the run, the same on all processes; a line for each newer one that is not."""
        found: list[Any] = [None]
        if self.is_world_process_zero():
            found = [checkpoints.newest(self.checkpoints)]
            for line in found[0].refused:
                self._warn(line)
        return broadcast_object_list(found, 0)[0].checkpoint

    def fault_of(self, checkpoint: Path) -> str | None:
        """What is wrong with a checkpoint; the first process reads it, all have the answer."""
        found: list[Any] = [checkpoints.good(checkpoint) if self.is_world_process_zero() else None]
        return broadcast_object_list(found, 0)[0]

    def progress_of(self, checkpoint: Path) -> dict[str, Any]:
        """What a checkpoint says of the run.

        Raises:
            RecipeError: it was not saved to be continued from.
        """
        if not (checkpoint / PROGRESS).is_file() or self.args.save_only_model:
            raise RecipeError(f"{checkpoint} holds the weights alone (save_only_model): there is nothing to continue from; train anew")
        return json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        """Upstream's; a best checkpoint that is not whole any more is forgotten with its score, and that is said."""
        found = super()._init_training_state(*args, **kwargs)
        if self.state.best_metric is not None and self.state.best_global_step:
            best = self.checkpoints / checkpoints.name(self.state.best_global_step)  # upstream forgets one whose folder was moved
            self.state.best_model_checkpoint = str(best)
            if fault := self.fault_of(best):
                self._warn(
                    f"the best checkpoint so far, of step {self.state.best_global_step}, is lost: {fault}; the best of the rest is kept"
                )
                self.state.best_model_checkpoint = self.state.best_metric = None
                self.state.best_global_step = 0
        return found

    def _run_epoch(self, *, model: Any, epoch: int, **kwargs: Any) -> None:
        """Upstream's; first what was due at the checkpoint, and nothing where no step is left, of which upstream takes one more."""
        self._catch_up(model, epoch, kwargs["start_time"])
        _begin_epoch(kwargs["train_dataloader"], epoch)
        if self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            super()._run_epoch(model=model, epoch=epoch, **kwargs)

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        self._catch_up(self.model_wrapped, int(self.state.epoch or 0), start_time)
        return super()._finalize_training(trial, num_train_samples, start_time)

    def _catch_up(self, model: Any, epoch: int, start_time: float) -> None:
        """The evaluation and the save that the run was stopped before."""
        if not any(self._due.values()):
            return
        self.control.should_evaluate, self.control.should_save = self._due["evaluate"], self._due["save"]
        self._maybe_log_save_evaluate(self._tr_loss, None, model, None, epoch, None, start_time)
        self.control.should_evaluate = self.control.should_save = False
        self._due = dict.fromkeys(self._due, False)

    # Stopping

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Upstream's, unless the run is to end."""
        self.refuse_to_go_on()
        return super().prediction_step(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Upstream's, after each step; where the run is to end, its log alone, then a checkpoint, which knows what is left to do."""
        if not self._told_to_stop():
            super()._maybe_log_save_evaluate(*args, **kwargs)
            return
        ending = self._epoch_ends()
        evaluate = self.control.should_evaluate or (ending and self.args.eval_strategy == "epoch")
        save = self.control.should_save or (ending and self.args.save_strategy == "epoch")
        self._due = {"evaluate": evaluate and not self._judged_here(), "save": save}
        self.control.should_evaluate = self.control.should_save = False
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._leave()

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Upstream's; told to end in its middle, the run saves that it is still due."""
        try:
            return super()._evaluate(*args, **kwargs)
        except Stopped:
            self._due = {"evaluate": True, "save": self.control.should_save}
            self._leave()

    def _leave(self) -> None:
        """Save what has been learned and end.

        Raises:
            Stopped: always.
        """
        self._save_checkpoint(self.model_wrapped, None)
        step = self.state.global_step
        saved = self.checkpoints / checkpoints.name(step)
        raise Stopped(f"{self.stop.asked or 'another process was told to end'}: step {step} is saved in {saved}")

    def _told_to_stop(self) -> bool:
        """Whether any process was; they ask together, so that none waits for one that has left."""
        if self.accelerator.num_processes == 1:
            return bool(self.stop.asked)
        told = torch.tensor(float(bool(self.stop.asked)), device=self.accelerator.device)
        return bool(self.accelerator.reduce(told, "sum") > 0)

    def refuse_to_go_on(self) -> None:
        """Within an evaluation, at points that all processes reach alike.

        Raises:
            Stopped: one of them was told to end.
        """
        if self._told_to_stop():
            raise Stopped(self.stop.asked)

    def _epoch_ends(self) -> bool:
        """Whether the step that was just taken is the last of its epoch, or of all."""
        return self.control.should_training_stop or float(self.state.epoch or 0.5).is_integer()

    def _judged_here(self) -> bool:
        """Whether the model was evaluated after this step already."""
        return any("eval_loss" in entry and entry["step"] == self.state.global_step for entry in self.state.log_history)

    def _evaluation_due(self) -> bool:
        """Whether an evaluation belongs to this step that has not been; one at the end of an epoch comes after a save within it."""
        scheduled = self._due["evaluate"] or self.control.should_evaluate or (self._epoch_ends() and self.args.eval_strategy == "epoch")
        return bool(scheduled) and not self._judged_here()


class _Begun(TrainerCallback):
    """Once transformers has set a continued run up, what it does not restore is restored."""

    def __init__(self, trainer: LastingTrainer):
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        if self.trainer.continued_from is not None:
            self.trainer.take_up(self.trainer.progress_of(self.trainer.continued_from))
            self.trainer.continued_from = None


def _begin_epoch(loader: Any, epoch: int) -> None:
    """Tell the epoch to every sampler within a loader. accelerate does not reach the innermost one of several processes when the first
    batches are skipped: a run resumed in its second epoch would see the order of the first again."""
    while loader is not None:
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(epoch)
        loader = getattr(loader, "batch_sampler", None) or getattr(loader, "sampler", None)


@contextmanager
def _disk_faults(checkpoint: Path, kept: Any) -> Iterator[None]:
    """One line where a checkpoint cannot be written.

    Raises:
        RecipeError: it could not; nothing of it is left, and what there was before is named.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in _WRITER):
            raise
        raise RecipeError(f"{checkpoint} could not be written, nothing of it is left: {error}; {kept()}") from error


_WRITER = ("PytorchStreamWriter", "basic_ios", "iostream error")  # torch.save raises no OSError
