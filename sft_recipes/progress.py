"""What a person sees while a model trains: one line drawn anew, a line for every twentieth of the run, and at every evaluation
the held-out scores with one of the replies they come from. Without a terminal the lines alone, each flushed as it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from .excerpt import contrasted, excerpt, right, spoken
from .scores import MANNER

LINES = 20  # of a run
COLUMNS = {  # what is logged: its heading, and how it is written
    "loss": ("loss", "{:.3f}"),
    "loss_all": ("loss_all", "{:.3f}"),
    "grad_norm": ("grad_norm", "{:.3f}"),
    "learning_rate": ("learning_rate", "{:.1e}"),
    "supervised_tokens_per_step": ("tokens", "{:,.0f}"),
    "supervised_tokens_per_second": ("tokens/s", "{:,.0f}"),
}
# Of an evaluation, what says nothing about the model, and how it speaks, which is in the summary and in wandb
NOT_SCORES = ("_runtime", "_per_second", "_preparation_time", *(f"eval_{name}" for name in MANNER))
FORM = "{n_fmt:>6}/{total_fmt}  {desc}{remaining} left"
COLOURS = {True: "green", False: "red", None: ""}
WIDEST = 100  # columns of a sample

out = Console(highlight=False, soft_wrap=True)


def told_in_lines(trainer: Any) -> None:
    """Let these lines take the place of transformers' dictionaries, and the one line that of its bars; its table in a notebook stays.

    Args:
        trainer: has `prepared`, `processing_class`, and at every evaluation in `samples` what the model said.
    """
    shown = {type(callback) for callback in trainer.callback_handler.callbacks}
    if PrinterCallback in shown:
        trainer.remove_callback(PrinterCallback)
    elif ProgressCallback in shown:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(Bar(trainer.prepared.recipe.primary))
    else:
        return
    trainer.add_callback(Lines(trainer))


def say(*lines: Text) -> None:
    """Print above the bar, where there is one."""
    with tqdm.external_write_mode():
        out.print(*lines, sep="\n")


class Bar(ProgressCallback):
    """One line: steps, the newest loss, held-out score and supervised tokens per second, and the time left, evaluations included.

    Args:
        primary: the score.
    """

    def __init__(self, primary: str):
        super().__init__()
        self.primary = primary
        self.parts: dict[str, str] = {"loss": "", "score": "", "speed": ""}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.current_step = state.global_step  # of a resumed run, the steps that are left are timed
        if state.is_world_process_zero:
            size = dict(total=state.max_steps, initial=state.global_step, dynamic_ncols=True)
            self.training_bar: Any = tqdm(**size, smoothing=0, leave=False, bar_format=FORM)
            self._draw()

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any) -> None:
        """One of a short evaluation is not worth a bar, and none stays behind."""
        if self.prediction_bar is None and state.is_world_process_zero:
            self.prediction_bar: Any = tqdm(total=len(eval_dataloader), desc="held-out loss", delay=2, leave=False, dynamic_ncols=True)
        super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        if self.prediction_bar is not None:  # its evaluation is over; what is printed now would draw it again
            self.prediction_bar.close()
            self.prediction_bar = None
        score = logs.get(f"eval_{self.primary.removeprefix('eval_')}")
        if score is not None:
            self.parts["score"] = f"{self.primary} {score:.3f}  "
        if "loss" in logs:
            self.parts["loss"] = f"loss {logs['loss']:.3f}  "
        if "supervised_tokens_per_second" in logs:
            self.parts["speed"] = f"{logs['supervised_tokens_per_second']:,.0f} tokens/s  "
        self._draw()

    def _draw(self) -> None:
        if self.training_bar is not None:
            self.training_bar.set_description_str("".join(self.parts.values()))


class Lines(TrainerCallback):
    """The lines, above the bar where there is one.

    Args:
        trainer: as for `told_in_lines`.
    """

    def __init__(self, trainer: Any):
        self.trainer, self.shown = trainer, -1
        self.next, self.heading, self.wanted, self.over = 0.0, False, False, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.next, self.heading, self.over = 0.0, False, False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.over = True  # what is measured now is in the summary

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or self.over:
            return
        step = f"{state.global_step:,}".rjust(_width(state))
        if "loss" in logs and state.global_step >= self.next:
            columns = [(heading.rjust(8), form.format(logs[name])) for name, (heading, form) in COLUMNS.items() if name in logs]
            if not self.heading:
                say(Text("  ".join(["step".rjust(len(step)), *(heading for heading, _ in columns)])))
            say(Text("  ".join([step, *(value.rjust(len(heading)) for heading, value in columns)])))
            self.next, self.heading = state.global_step + state.max_steps / LINES, True
        elif "eval_loss" in logs:
            say(Text(f"{step}  held-out: {', '.join(f'{name} {value:.3f}' for name, value in held_out(logs).items())}"))

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any) -> None:
        """One of the replies that were scored, another each time; a wrong one and a right one in turn, as long as there are both."""
        samples = getattr(self.trainer, "samples", None)
        if not state.is_world_process_zero or self.over or not samples or "eval_loss" not in (metrics or {}):
            return
        primary = self.trainer.prepared.recipe.primary
        sample = samples[self._chosen([right(sample.scores, primary) for sample in samples])]
        reply = self.trainer.processing_class.decode(sample.reply_ids)
        verdict, reference = right(sample.scores, primary), spoken(sample.question.expected)
        say(*_sample(sample.question.asked, reply, verdict, reference, " " * (_width(state) + 2)))

    def _chosen(self, verdicts: Sequence[bool | None]) -> int:
        """The next after the one shown last that is as wanted; the next of all where none is."""
        order = [(self.shown + 1 + i) % len(verdicts) for i in range(len(verdicts))]
        self.shown = next((i for i in order if verdicts[i] is self.wanted), order[0])
        self.wanted = not self.wanted
        return self.shown


def _width(state: Any) -> int:
    """Of the column of steps."""
    return max(4, len(f"{state.max_steps:,}"))


def held_out(logs: Mapping[str, float]) -> dict[str, float]:
    """The scores of an evaluation by the names they have in the summary, without their parts (`exact_3_terms`) and without the manner."""
    scores = {name: value for name, value in logs.items() if name.startswith("eval_") and not name.endswith(NOT_SCORES)}
    whole = [name for name in scores if not any(name.startswith(f"{other}_") for other in scores)]
    return {name if name == "eval_loss" else name.removeprefix("eval_"): scores[name] for name in whole}


def _sample(asked: str, reply: str, verdict: bool | None, reference: str, indent: str) -> list[Text]:
    """Two lines, and a third with the reference where the reply is wrong."""
    columns = min(out.width, WIDEST) - len(indent) - len("expected  ")
    said, expected = contrasted(reply, reference, columns) if verdict is False else (excerpt(reply, columns), "")
    name = {True: "right", False: "wrong", None: "reply"}[verdict]
    lines = [("asked", excerpt(asked, columns, last=True), "dim"), (name, said, COLOURS[verdict])]
    lines += [("expected", expected, "")] if verdict is False else []
    return [Text.assemble(indent, (f"{label:<8}  ", "dim"), (text, style)) for label, text, style in lines]
