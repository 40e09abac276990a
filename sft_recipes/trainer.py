"""`RecipeTrainer`, TRL's `SFTTrainer` held to this project's promises, and `build_trainer`: from rows to a proven folder."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from datasets import IterableDataset
from peft import PeftModel

from . import continuing, engines, export, spot, tracking
from .config import RecipeConfig as RecipeConfig
from .config import Resolved, resolve
from .evaluate import Sample
from .preflight import Layout, Report, check
from .prepare import Prepared
from .progress import told_in_lines
from .recipe import Recipe, RecipeError
from .report import write_report
from .rows import dataset
from .run import Run, describe
from .show.examples import examples
from .show.view import Reader
from .stream.later import stream_of
from .training.faults import told
from .training.judged import Judged, JudgedTrainer
from .verdict.curves import curves
from .verdict.forgetting import forgetting
from .verdict.hints import loss_hint
from .weights import adapter, base_of, load_adapter, load_base, save_adapter, settle, trainable


class RecipeTrainer(JudgedTrainer):
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

    def __init__(self, model: Any, resolved: Resolved, prepared: Prepared, layout: Layout | None = None):
        self.run = Run(Path(str(resolved.config.output_dir)))
        self.resolved, self.layout = resolved, layout or Layout("none", "asked for")
        self.metrics: dict[str, Any] = {}
        args = copy.copy(resolved.config)
        args.output_dir = str(self.run.checkpoints)
        if args.hub_token:  # upstream writes its arguments into each checkpoint, whole; from here it finds the token as well
            os.environ["HF_TOKEN"], args.hub_token = args.hub_token, None
        args.dataset_kwargs = {"skip_prepare_dataset": True}  # our rows are whole; TRL would cut them
        packed = self.layout.packed
        rows = prepared.rows if packed is None else packed.rows
        if packed is not None:
            args.per_device_train_batch_size = 1  # row a micro-batch: it holds as many conversations as it has tokens for
        continued = isinstance(model, PeftModel)
        exact = trainable(model) if continued else None
        super().__init__(
            prepared,
            model=model,
            args=args,
            train_dataset=dataset(rows[:1] if prepared.stream else rows),
            peft_config=None if continued else adapter(prepared.recipe, prepared.tokenizer, model),
        )
        settle(self.model, exact)
        if prepared.stream:
            self.learn_from(stream_of(prepared, self.layout, resolved.config), prepared.stop_ids)
        told_in_lines(self)

    @told
    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Evaluate, train, evaluate what is kept, merge and prove; everything lands in the run folder, scores in `self.metrics`.

        Args:
            resume_from_checkpoint: true, or a checkpoint, continues the run in the folder, false begins anew. `None` continues it where
                it has not come to its end and is this very run: the weights will be those of a run that was never interrupted.

        Returns:
            transformers' `TrainOutput`, with the scores added to its `metrics`.

        Raises:
            RecipeError: the deployed model is not the trained one, with everything that differs; or it cannot be written; or it forgot
                more than the recipe allows; or there is nothing to resume; or memory ran out, or a data worker was killed, with the
                figures to lower.
            Stopped: a signal told it to end, and what it has learned is saved.
        """
        begins = self._begins(resume_from_checkpoint)
        with self.stop.listening(), spot.watched(self.stop), tracking.started(self):
            self.judge_before(resumed=begins is not None)
            output = super().train(resume_from_checkpoint=str(begins) if begins else None, **kwargs)
            with self.stop.at_once():
                self._conclude(output)
        self.accelerator.wait_for_everyone()
        export.refuse(self.metrics["merge"], self.run.merged)
        scores = {f"after_{name}": value for name, value in self.metrics["after"].items()}
        return output._replace(metrics={**output.metrics, **scores})

    def _conclude(self, output: Any) -> None:
        """From the trained weights to the deployed folder and the report."""
        assert self.before is not None
        end, history = self.newest, self.logged_before + self.state.log_history
        last = end if end and end.step == self.state.global_step else None
        after = last if last and self.kept_step == last.step else self.judge_apart()
        other = last if last is not after else None
        self.metrics = self._measured(self.before, after, other, history, output.metrics)
        lines = self._write({"before": self.before, "end": other, "after": after}, history)  # kept, whatever becomes of the merge
        self.refuse_forgotten(after)
        self.metrics["merge"] = self._deploy(after.samples, lines)
        self._report()

    def _begins(self, asked: str | bool | None) -> Path | None:
        """Where training begins: at a checkpoint of the run in the folder, or at its start, an earlier run being moved away.

        Raises:
            RecipeError: the run in the folder cannot be continued; or the disk is too small.
        """
        described = describe(self.resolved, self.prepared, self.layout, base_of(self.resolved.recipe))
        goes_on = self._goes_on(asked, described)
        if isinstance(asked, str) and (fault := self.fault_of(Path(asked))):
            raise RecipeError(f"{asked} is not continued from: {fault}; --resume takes the newest good one")
        begins = Path(asked) if isinstance(asked, str) else self.newest_checkpoint() if goes_on else None
        if begins is not None:
            self.continued_from = begins
            self.recall(self.progress_of(begins))
        elif goes_on:
            self._tell(f"{self.run.folder}: no checkpoint yet; it starts from the beginning")
        if begins is not None:
            self._tell(f"continued from {begins}")
        self.refuse_full()
        self._describe(described, anew=not goes_on)
        return begins

    def _goes_on(self, asked: str | bool | None, described: dict[str, Any]) -> bool:
        """Whether the run in the folder is continued; decided by the first process, before anything in the folder changes."""
        found: list[Any] = [False]
        if self.is_world_process_zero():
            try:
                found = [continuing.goes_on(self.run, asked, described, self._tell)]
            except RecipeError as error:
                found = [error]
        goes_on = broadcast_object_list(found, 0)[0]
        if isinstance(goes_on, RecipeError):
            raise goes_on
        return goes_on

    def _tell(self, text: str) -> None:
        if self.is_world_process_zero():
            print(text, file=sys.stderr)

    def _describe(self, described: dict[str, Any], anew: bool) -> None:
        """What is about to be trained, into the run folder; what lies there of another run is moved away."""
        if self.is_world_process_zero():
            if anew:
                self.run.set_aside()
            self.run.write("recipe.json", described)
            self.run.write_lines("rows.jsonl", examples(Reader(self.processing_class, self.prepared.stop_ids), self.prepared.rows))
        self.accelerator.wait_for_everyone()

    def _measured(
        self, before: Judged, after: Judged, end: Judged | None, history: list[dict], trained: dict[str, float]
    ) -> dict[str, Any]:
        """The content of `metrics.json`, but for the proof."""
        prepared = self.prepared
        return {
            "primary": prepared.recipe.primary,
            "before": before.scores,
            **({"end": end.scores} if end else {}),
            "after": after.scores,
            "best": self.best(history),
            "curves": {**curves(history), "hint": loss_hint(history, prepared.recipe.loss_hint, self.resolved.name)},
            **self._retention(before, after, end),
            "merge": {},
            "supervision": {p: getattr(prepared, p).supervision.as_dict() for p in ("train", "held_out")} | self.streamed(),
            "stop_tokens": self.processing_class.convert_ids_to_tokens(sorted(prepared.stop_ids)),
            "train": trained,
            "steps": {"skipped": self.guard.skipped, "unmoved": self.unmoved},
        }

    def _retention(self, before: Judged, after: Judged, end: Judged | None) -> dict[str, Any]:
        """What became of the data to be kept, where the recipe names some, and how much of them was replayed."""
        recipe, prepared = self.prepared.recipe, self.prepared
        if prepared.retained is None:
            return {}
        size = (len(prepared.retained.rows), prepared.retained.supervision.supervised_tokens)
        ends = end.retained if end else None
        mix = None if prepared.stream else recipe.mix
        found = {"retain": forgetting(before.retained, after.retained, recipe.max_rise, *size, ends, mix)}
        return {**found, "replay": prepared.replay} if prepared.replayed else found

    def _write(self, stages: dict[str, Judged | None], history: list[dict]) -> list[dict[str, Any]]:
        """Everything measured, into the run folder; the lines of `samples.jsonl`."""
        steps = {"after": self.kept_step}
        told = {stage: ({"stage": stage, "step": steps.get(stage, found.step)}, found.samples) for stage, found in stages.items() if found}
        lines = [{**about, **s.as_dict(self.processing_class)} for about, samples in told.values() for s in samples]
        if self.is_world_process_zero():
            self.run.write("metrics.json", self.metrics)
            self.run.write_lines("samples.jsonl", lines)
            self.run.write_lines("history.jsonl", history)
        return lines

    def _report(self) -> None:
        """The numbers with the proof, and the page that shows them; without the page, a run that is proven is still one."""
        if not self.is_world_process_zero():
            return
        self.run.write("metrics.json", self.metrics)
        try:
            page = write_report(self.run)
        except Exception as error:
            self._warn(f"report.html was not written: {type(error).__name__}: {error}; sft-recipes report {self.run.folder} tries again")
        else:
            tracking.attach(self, page)

    def _deploy(self, learned: list[Sample], lines: list[dict[str, Any]]) -> dict[str, Any]:
        """Save, merge and prove on the first process; where the weights lie in parts, all take part in what reads them."""
        proof: dict[str, Any] = {}
        prepared, model, tokenizer = self.prepared, self.accelerator.unwrap_model(self.model), self.processing_class
        full, parts = prepared.recipe.adapter is None, engines.in_parts(self)
        whole: Any = engines.gathered(self, full) if parts else None
        if parts or self.is_world_process_zero():
            answered = [(sample.question.prompt_ids, sample.reply_ids) for sample in learned]
            served = export.served_prompts((prepared.train, prepared.held_out))
            said = export.record(model, prepared.recipe, tokenizer, prepared.stop_ids, prepared.held_out.rows, answered, served)
        if self.is_world_process_zero():
            if not full:
                save_adapter(model, tokenizer, prepared.recipe, self.run.adapter, whole)
            about = {"recipe": self.run.read("recipe.json"), "metrics": self.metrics, "samples": lines}
            with engines.unparted():
                source = self.run.adapter if not full else engines.rebuilt(model, whole) if parts else model
                proof = export.deploy(prepared.recipe, tokenizer, source, said, self.run.merged, about)
        engines.wait(self.accelerator)
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
        train_dataset: a `datasets.Dataset` or a list of conversations, instead of the recipe's data; or a `datasets.IterableDataset`,
            which is trained as it is read, for `max_steps` steps.
        eval_dataset: the same for the held-out data; without it a part of `train_dataset` is split off.
        **overrides: any field of `Recipe` or of `trl.SFTConfig`, by its own name; or `arm`, one of the recipe's ablation instead
            of the first; `start_from` is what the command calls `--from`.

    Raises:
        RecipeError: every fault of recipe, overrides, model and data, one line each.
    """
    if train_dataset is not None:
        streamed = {"streaming": True} if isinstance(train_dataset, IterableDataset) else {}
        overrides = {"held_out": Recipe.held_out, **streamed, **overrides}
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
    origin, place = resolved.origin, engines.place(resolved.recipe.quantization is not None)
    with engines.unparted():
        model: Any = load_base(resolved.recipe, prepared.tokenizer, resolved.config.seed, place)
        if origin and origin["part"] == "adapter":
            model = load_adapter(model, Run(Path(origin["run"])).adapter)
    return resolved.trainer_class(model, resolved, prepared, report.layout)
