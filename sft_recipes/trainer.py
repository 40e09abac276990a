"""`RecipeTrainer`, TRL's `SFTTrainer` held to this project's promises, and `build_trainer`: from rows to a proven folder."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft import PeftModel

from . import evaluate as judging
from . import export, tracking
from .config import RecipeConfig as RecipeConfig
from .config import Resolved, resolve
from .preflight import Layout, Report, check
from .prepare import Prepared
from .progress import told_in_lines
from .recipe import Recipe, RecipeError
from .rows import dataset
from .run import Run, describe
from .step import StepTrainer
from .weights import adapter, base_of, load_adapter, load_base, save_adapter, settle, trainable


class RecipeTrainer(StepTrainer):
    """An `SFTTrainer` whose rows, labels, evaluation and export come from a recipe.

    A recipe subclasses it once and sets `recipe`. Its hooks, all optional and all static:

    - `conversation(row)`: a row as its source has it, to `{"messages", "tools"}` in the OpenAI form;
    - `score(reply, expected)`: a reply, read by the tokenizer's response template (with `stopped`), and the reference (with `tools`,
      `asked`: the text before it, and `tests` where its row has some) to floats, 1 for right; `sft_recipes.scores` has ready-made ones.

    Args:
        model: the base model, loaded; or a `PeftModel`, whose adapter is trained on.
        resolved: the recipe and its configuration, whose `output_dir` is the run folder.
        prepared: rows, questions and stop tokens, from `prepare`.
        layout: of the training rows, from `preflight`; `None` for one conversation a row.
    """

    recipe: Recipe

    @staticmethod
    def conversation(row: dict) -> dict:
        return row

    @staticmethod
    def score(reply: dict, expected: dict) -> dict[str, float]:
        return {}

    def __init__(self, model: Any, resolved: Resolved, prepared: Prepared, layout: Layout | None = None):
        self.run = Run(Path(str(resolved.config.output_dir)))
        self.resolved, self.prepared, self.layout = resolved, prepared, layout or Layout("none", "asked for")
        self.metrics: dict[str, Any] = {}
        args = copy.copy(resolved.config)
        args.output_dir = str(self.run.checkpoints)
        args.dataset_kwargs = {"skip_prepare_dataset": True}  # our rows are whole; TRL would cut them
        packed = self.layout.packed
        if packed is not None:
            args.per_device_train_batch_size = 1  # row a micro-batch: it holds as many conversations as it has tokens for
        continued = isinstance(model, PeftModel)
        exact = trainable(model) if continued else None
        super().__init__(
            prepared.recipe,
            model=model,
            args=args,
            train_dataset=dataset(packed.rows if packed is not None else prepared.train.rows),
            eval_dataset=dataset(prepared.held_out.rows),
            processing_class=prepared.tokenizer,
            peft_config=None if continued else adapter(prepared.recipe, prepared.tokenizer, model),
        )
        settle(self.model, exact)
        told_in_lines(self)
        self._judging = False
        self._samples: list[judging.Sample] = []

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Evaluate, train, evaluate, merge and prove; everything lands in the run folder, scores in `self.metrics`.

        Returns:
            transformers' `TrainOutput`, with the scores added to its `metrics`.

        Raises:
            RecipeError: the deployed model is not the trained one, with everything that differs; or it cannot be written.
        """
        if resume_from_checkpoint is True and not any(self.run.checkpoints.glob("checkpoint-*")):
            raise RecipeError(f"nothing to resume: no checkpoint in {self.run.checkpoints}")
        if self.is_world_process_zero():
            if not resume_from_checkpoint:
                self.run.set_aside()
            self.run.write("recipe.json", describe(self.resolved, self.prepared, self.layout, base_of(self.resolved.recipe)))
        self.accelerator.wait_for_everyone()
        with tracking.started(self):
            before, samples = self.judge()
            output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
            after, learned = self.judge()
            self.metrics = self._measured(before, after, output.metrics)
            lines = self._write([("before", samples), ("after", learned)])  # kept, whatever becomes of the merge
            self.metrics["merge"] = self._deploy(learned, lines)
        if self.is_world_process_zero():
            self.run.write("metrics.json", self.metrics)
        self.accelerator.wait_for_everyone()
        export.refuse(self.metrics["merge"], self.run.merged)
        return output._replace(metrics={**output.metrics, **{f"after_{name}": value for name, value in after.items()}})

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """With the loss over the recipe's held-out rows go the scores of what the model generates, on all processes together."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self._judging:
            self._samples = self._generated()
            scores = judging.scores(self._samples)
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in scores.items()})
        return output

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss and scores on the held-out conversations; on another dataset the loss alone.

        Returns:
            `eval_loss`, the mean over all supervised tokens in nats, and `eval_<score>` for each score of the recipe.
        """
        self._judging = eval_dataset is None
        try:
            return super().evaluate(eval_dataset, *args, **kwargs)
        finally:
            self._judging = False

    def judge(self) -> tuple[dict[str, float], list[judging.Sample]]:
        """The scores on the held-out conversations, with `eval_loss` among them, and the samples they come from."""
        loss = self.evaluate()["eval_loss"]
        return judging.scores(self._samples, eval_loss=loss), self._samples

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
        )
        own = judging.judge(mine, replies, self.processing_class, prepared.stop_ids, self.score)
        return judging.gathered(own, questions)

    def _measured(self, before: dict[str, float], after: dict[str, float], trained: dict[str, float]) -> dict[str, Any]:
        """The content of `metrics.json`, but for the proof."""
        return {
            "primary": self.prepared.recipe.primary,
            "before": before,
            "after": after,
            "merge": {},
            "supervision": {p: getattr(self.prepared, p).supervision.as_dict() for p in ("train", "held_out")},
            "stop_tokens": self.processing_class.convert_ids_to_tokens(sorted(self.prepared.stop_ids)),
            "train": trained,
            "steps": {"skipped": self.guard.skipped, "unmoved": self.unmoved},
        }

    def _write(self, stages: list[tuple[str, list[judging.Sample]]]) -> list[dict[str, Any]]:
        """Everything measured, into the run folder; the lines of `samples.jsonl`."""
        lines = [{"stage": stage, **s.as_dict(self.processing_class)} for stage, samples in stages for s in samples]
        if self.is_world_process_zero():
            self.run.write("metrics.json", self.metrics)
            self.run.write_lines("samples.jsonl", lines)
            self.run.write_lines("history.jsonl", self.state.log_history)
        return lines

    def _deploy(self, learned: list[judging.Sample], lines: list[dict[str, Any]]) -> dict[str, Any]:
        """Save, merge and prove on the first process."""
        proof: dict[str, Any] = {}
        if self.is_world_process_zero():
            prepared, model, tokenizer = self.prepared, self.accelerator.unwrap_model(self.model), self.processing_class
            answered = [(sample.question.prompt_ids, sample.reply_ids) for sample in learned]
            served = export.served_prompts((prepared.train, prepared.held_out))
            rows = prepared.held_out.rows
            said = export.record(model, prepared.recipe, tokenizer, prepared.stop_ids, rows, answered, served)
            if prepared.recipe.adapter is not None:
                save_adapter(model, tokenizer, prepared.recipe, self.run.adapter)
            source = model if prepared.recipe.adapter is None else self.run.adapter
            about = {"recipe": self.run.read("recipe.json"), "metrics": self.metrics, "samples": lines}
            proof = export.deploy(prepared.recipe, tokenizer, source, said, self.run.merged, about)
        self.accelerator.wait_for_everyone()
        return proof


def build_trainer(
    name: str,
    scale: str = "auto",
    train_dataset: Iterable[dict] | None = None,
    eval_dataset: Iterable[dict] | None = None,
    **overrides: Any,
) -> RecipeTrainer:
    """A trainer for a recipe, checked and ready for `.train()`.

    Args:
        name: the recipe, as `sft-recipes list` prints it.
        scale: `full`, `tiny`, or `auto`: full where a CUDA device is present.
        train_dataset: a `datasets.Dataset` or a list of conversations, instead of the recipe's data.
        eval_dataset: the same for the held-out data; without it a part of `train_dataset` is split off.
        **overrides: any field of `Recipe` or of `trl.SFTConfig`, by its own name; or `arm`, one of the recipe's ablation instead
            of the first; `start_from` is what the command calls `--from`.

    Raises:
        RecipeError: every fault of recipe, overrides, model and data, one line each.
    """
    if train_dataset is not None:
        overrides.setdefault("held_out", Recipe.held_out)
    resolved = resolve(name, scale, **overrides)
    if resolved.remark:
        print(resolved.remark, file=sys.stderr)
    report = check(resolved, train_dataset, eval_dataset)
    if report.faults or report.prepared is None:
        raise RecipeError(*report.faults)
    return from_report(report)


def from_report(report: Report) -> RecipeTrainer:
    """A trainer for a recipe that has passed its check."""
    resolved, prepared = report.resolved, report.prepared
    assert prepared is not None
    model: Any = load_base(resolved.recipe, prepared.tokenizer, resolved.config.seed)
    origin = resolved.origin
    if origin and origin["part"] == "adapter":
        model = load_adapter(model, Run(Path(origin["run"])).adapter)
    return resolved.trainer_class(model, resolved, prepared, report.layout)
