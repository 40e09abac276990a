"""What a person sees while a model trains: a line for every twentieth of the run and for every evaluation."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from .scores import MANNER

LINES = 20  # of a run
COLUMNS = {  # what is logged: its heading, and how it is written
    "loss": ("loss", "{:.3f}"),
    "loss_all": ("loss_all", "{:.3f}"),
    "grad_norm": ("grad_norm", "{:.3f}"),
    "learning_rate": ("learning_rate", "{:.1e}"),
    "supervised_tokens_per_step": ("tokens", "{:,.0f}"),
    "padding_share": ("padding", "{:.1%}"),
}
# Of an evaluation, what says nothing about the model, and how it speaks, which is in the summary and in wandb
NOT_SCORES = ("_runtime", "_per_second", "_preparation_time", *(f"eval_{name}" for name in MANNER))


def told_in_lines(trainer: Trainer) -> None:
    """Let these lines take the place of transformers' dictionaries; its bar stays, and its table in a notebook."""
    shown = {type(callback) for callback in trainer.callback_handler.callbacks}
    if PrinterCallback in shown:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Lines)
    elif ProgressCallback in shown:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(Bar)
        trainer.add_callback(Lines)


class Bar(ProgressCallback):
    """transformers' bar, which says nothing else."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        pass


class Lines(TrainerCallback):
    """The lines, between which `tqdm` redraws its bar."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.next = 0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or not state.max_steps:
            return  # an evaluation before training: its scores are in the summary
        step = f"{state.global_step:,}".rjust(max(4, len(f"{state.max_steps:,}")))
        if "loss" in logs and state.global_step >= self.next:
            columns = [(heading.rjust(8), form.format(logs[name])) for name, (heading, form) in COLUMNS.items() if name in logs]
            if not self.next:
                tqdm.write("  ".join(["step".rjust(len(step)), *(heading for heading, _ in columns)]))
            tqdm.write("  ".join([step, *(value.rjust(len(heading)) for heading, value in columns)]))
            self.next = state.global_step + state.max_steps / LINES
        elif "eval_loss" in logs and state.global_step < state.max_steps:
            scores = {name: value for name, value in logs.items() if name.startswith("eval_") and not name.endswith(NOT_SCORES)}
            whole = [name for name in scores if not any(name.startswith(f"{other}_") for other in scores)]  # not the parts of a score
            said = (f"{name if name == 'eval_loss' else name.removeprefix('eval_')} {scores[name]:.3f}" for name in whole)
            tqdm.write(f"{step}  held-out: {', '.join(said)}")
