"""`JudgedTrainer`: a `StreamingTrainer` that is judged by what it generates (promise 8), and by what it keeps of what it knew.

Every evaluation, on all processes together: the held-out loss, every held-out turn generated and scored, the loss on the data to be
kept. The checkpoint with the best score is the one that training ends with; of equal scores, that with the lower held-out loss.
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from peft import PeftModel
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from .. import engines
from .. import evaluate as judging
from ..prepare import Prepared
from ..recipe import RecipeError, unknown_name
from ..rows import dataset
from ..verdict.best import best
from ..verdict.forgetting import ACCURACY, LOSS, rise, too_much
from ..weights.checkpoint import restore
from .streaming import StreamingTrainer


class Judged(NamedTuple):
    """An evaluation.

    Attributes:
        step: after which optimiser step; 0 before the first.
        scores: on the held-out conversations, `eval_loss` among them.
        samples: the generations they come from, in the order of the questions.
        retained: `retain_loss` and `retain_accuracy` where the recipe names data to be kept, else empty.
    """

    step: int
    scores: dict[str, float]
    samples: list[judging.Sample]
    retained: dict[str, float]

    def kept(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {**self._asdict(), "samples": [sample.kept() for sample in self.samples]}

    @classmethod
    def recalled(cls, kept: dict[str, Any] | None, questions: list[judging.Question]) -> Judged | None:
        """What `kept` gave, with the questions it was asked."""
        return cls(**{**kept, "samples": judging.recalled(kept["samples"], questions)}) if kept else None


class LastStep(TrainerCallback):
    """The last step is evaluated too, wherever the intervals end: otherwise the finished model would be no candidate."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps and args.eval_strategy == IntervalStrategy.STEPS:
            control.should_evaluate = True


class JudgedTrainer(StreamingTrainer):
    """A `StreamingTrainer` with a recipe's held-out conversations, scores, and data to be kept.

    Args:
        prepared: rows, questions and stop tokens, from `prepare`.
        **kwargs: as `StreamingTrainer` takes them.
    """

    def __init__(self, prepared: Prepared, **kwargs: Any):
        super().__init__(prepared.recipe, eval_dataset=dataset(prepared.held_out.rows), processing_class=prepared.tokenizer, **kwargs)
        self.prepared = prepared
        self.before: Judged | None = None
        self.tracked: str | None = None  # the wandb run's id
        self.logged_before: list[dict[str, Any]] = []  # what it logged, which transformers forgets when training begins
        self.newest: Judged | None = None
        self._judging = False
        self._warned = False
        self._lost = ""
        self._retained = dataset(prepared.retained.rows) if prepared.retained else None
        self.add_callback(LastStep())
        if prepared.recipe.patience:
            self.add_callback(EarlyStoppingCallback(prepared.recipe.patience))

    @staticmethod
    def score(reply: dict, expected: dict) -> dict[str, float]:
        return {}

    @property
    def samples(self) -> list[judging.Sample]:
        """The newest generations, of all held-out turns, the same on all processes."""
        return self.newest.samples if self.newest else []

    # An evaluation

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss and scores on the held-out conversations; on another dataset the loss alone.

        Returns:
            `eval_loss`, the mean over all supervised tokens in nats, `eval_<score>` for each score of the recipe, and
            `eval_retain_loss` and `eval_retain_accuracy` where it names data to be kept.
        """
        self._judging = eval_dataset is None
        try:
            return super().evaluate(eval_dataset, *args, **kwargs)
        finally:
            self._judging = False

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """With the loss over the held-out rows go the scores of what the model generates, on all processes together."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self._judging:
            began = perf_counter()
            samples = self._generated()
            self._paused += perf_counter() - began
            retained = self._measure_retained()
            scores = judging.scores(samples, eval_loss=output.metrics[f"{metric_key_prefix}_loss"])
            self.newest = Judged(self.state.global_step, scores, samples, retained)
            if self.before is None and engines.late(self):
                self.before = self.newest
                self.refuse_unknown_metric(self.newest)
            found = {name: value for name, value in {**scores, **retained}.items() if name != "eval_loss"}
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        return output

    def judge_before(self, resumed: bool) -> None:
        """The evaluation before training, which a run that is resumed has had.

        Where the engine takes a model only with its optimiser, transformers makes it as training begins.

        Raises:
            RecipeError: what chooses the checkpoint is not among what was measured.
        """
        late = engines.late(self)
        self.args.eval_on_start = late and not resumed
        if not late and not resumed:
            with self.stop.at_once():
                self.before = self.judge()
            self.logged_before = list(self.state.log_history)  # transformers begins a new one with the training
        if self.before is not None:
            self.refuse_unknown_metric(self.before)

    def judge(self) -> Judged:
        """An evaluation of the model as it is, logged like every other."""
        self.evaluate()
        assert self.newest is not None
        return self.newest

    def judge_apart(self) -> Judged:
        """The same, of which no log, bar or callback hears: the model that is kept may be that of an earlier step."""
        self._judging = True
        try:
            self.evaluation_loop(self.get_eval_dataloader(), "Evaluation", prediction_loss_only=True)
        finally:
            self._judging = False
        assert self.newest is not None
        return self.newest

    def _generated(self) -> list[judging.Sample]:
        """Every held-out turn as the model says it, on every process, in the order of the questions."""
        questions, prepared = self.prepared.questions, self.prepared
        mine = judging.share(questions, self.accelerator.process_index, self.accelerator.num_processes)
        replies = judging.generate(
            self.accelerator.unwrap_model(self.model),
            [question.prompt_ids for question in mine],
            prepared.stop_ids,
            self.processing_class.pad_token_id,
            prepared.recipe.max_new_tokens,
            leave=lambda: self.stop.asked,
        )
        self.refuse_to_go_on()
        own = judging.judge(mine, replies, self.processing_class, prepared.stop_ids, self.score)
        return judging.gathered(own, questions)

    def _measure_retained(self) -> dict[str, float]:
        """Mean loss and accuracy over the tokens of the data to be kept."""
        if self._retained is None:
            return {}
        loader = self.get_eval_dataloader(self._retained)
        output = super().evaluation_loop(loader, "Retained", prediction_loss_only=True, metric_key_prefix="retain")
        return {LOSS: output.metrics[LOSS], ACCURACY: self.token_accuracy}

    # Going on

    def _progress(self) -> dict[str, Any]:
        """With the evaluations before training and the newest one."""
        judged = {name: found.kept() if found else None for name, found in (("before", self.before), ("newest", self.newest))}
        return {**super()._progress(), **judged, "logged_before": self.logged_before, "warned": self._warned, "tracked": self.tracked}

    def recall(self, progress: dict[str, Any]) -> None:
        """The evaluations of a run that goes on, from its checkpoint's `progress.json`: none is repeated."""
        questions = self.prepared.questions
        self.before, self.newest = (Judged.recalled(progress[name], questions) for name in ("before", "newest"))
        self.logged_before, self._warned, self.tracked = (progress[name] for name in ("logged_before", "warned", "tracked"))

    # The checkpoint that is kept

    def refuse_unknown_metric(self, measured: Judged) -> None:
        """What chooses the checkpoint has to be measured.

        Raises:
            RecipeError: no evaluation gives it.
        """
        name = str(self.args.metric_for_best_model).removeprefix("eval_")
        known = {"loss", *measured.scores, *measured.retained} - {"eval_loss"}
        if name not in known:
            told = "recipe.primary" if name == self.prepared.recipe.primary else "metric_for_best_model"
            raise RecipeError(f"{told}: {unknown_name('score', name, known)}; measured are {', '.join(sorted(known))}")

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Upstream's; of equal scores the one with the lower held-out loss is better, and a model that forgot too much is none."""
        if self._forgot(metrics):
            return False
        if super()._determine_best_metric(metrics, trial):
            return True
        if not self._breaks_tie(metrics):
            return False
        self.state.best_global_step = self.state.global_step
        return True

    def _load_best_model(self) -> None:
        """The checkpoint with the best score, where every byte of it is as it was written; else the last step's weights stay."""
        best = Path(str(self.state.best_model_checkpoint))
        if fault := self.fault_of(best):
            self._lost = f"{best}, which was the best, is lost: {fault}"
            self._warn(f"{self._lost}; the last step's weights are deployed")
            self.state.best_model_checkpoint = None
        elif self._whole:
            restore(self.model, best)
        else:
            super()._load_best_model()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._whole:
            restore(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    @property
    def _whole(self) -> bool:
        """All weights are trained, and lie on this device whole; see `weights.checkpoint` for why upstream does not load them."""
        return not isinstance(self.model, PeftModel) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _breaks_tie(self, metrics: dict[str, float]) -> bool:
        name = str(self.args.metric_for_best_model).removeprefix("eval_")
        held = [e["eval_loss"] for e in self.state.log_history if "eval_loss" in e and e["step"] == self.state.best_global_step]
        return metrics[f"eval_{name}"] == self.state.best_metric and bool(held) and metrics["eval_loss"] < held[-1]

    def _forgot(self, metrics: dict[str, float]) -> bool:
        """Whether the loss on the data to be kept rose beyond the bound and the recipe stops there; a warning the first time."""
        recipe = self.prepared.recipe
        if self.before is None or self._retained is None:
            return False
        rose = rise(self.before.retained, {LOSS: metrics[f"eval_{LOSS}"]})
        if rose <= recipe.max_rise:
            return False
        stops = recipe.forgetting == "stop"
        if not self._warned:
            self._warned = True
            self._warn(too_much(self.state.global_step, rose, recipe.max_rise) + ("; training ends here" if stops else ""))
        self.control.should_training_stop |= stops
        return stops

    def refuse_forgotten(self, kept: Judged) -> None:
        """Where the recipe stops at forgetting, a model beyond the bound is not deployed.

        Raises:
            RecipeError: it is; there was no checkpoint within the bound.
        """
        recipe = self.prepared.recipe
        if recipe.forgetting != "stop" or self._retained is None or self.before is None:
            return
        rose = rise(self.before.retained, kept.retained)
        if rose > recipe.max_rise:
            told = too_much(self.kept_step, rose, recipe.max_rise)
            raise RecipeError(f"{told}, and no checkpoint is within it; replay more with --mix, or lower --learning_rate")

    @property
    def kept_step(self) -> int:
        """The step whose weights training has ended with."""
        return self.state.best_global_step if self._best_loaded else self.state.global_step

    @property
    def _best_loaded(self) -> bool:
        return self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None

    def best(self, history: list[dict[str, Any]]) -> dict[str, Any]:
        """Which checkpoint was kept and why, by what was logged; see `verdict.best`."""
        metric, greater = str(self.args.metric_for_best_model), bool(self.args.greater_is_better)
        checkpoint = f"checkpoint-{self.kept_step}" if self._best_loaded else None
        return best(history, metric, greater, self.kept_step, checkpoint, self._why_last())

    def _why_last(self) -> str:
        """Why there was nothing to choose from."""
        if self._lost:
            return self._lost
        if self.args.eval_strategy == IntervalStrategy.NO:
            return "there was no evaluation while training (eval_strategy)"
        if self.args.load_best_model_at_end:
            return "no evaluation gave a number"
        return "no checkpoint lies where an evaluation was (save_strategy, save_steps)"
