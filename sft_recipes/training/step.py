"""`StepTrainer`: TRL's `SFTTrainer` whose optimiser steps are what the recipe declares (promises 5 and 6)."""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import DistributedType
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTTrainer

from .. import attention, engines
from ..attention.sharing import prove
from ..optim.groups import parameter_groups
from ..optim.neftune import Neftune
from ..optim.schedule import schedule
from ..public import public
from ..recipe import Recipe, RecipeError
from ..rows import IGNORED
from ..rows.grouping import LengthGrouped, Shuffled, drawn_from
from .batches import collated, first_rows
from .guards import SHOWN, FirstSteps, Guard, blame
from .loss import Scored, context, loss_weights, per_conversation, real, spread, supervised, token_losses
from .tally import Tally
from .unprepared import still_unprepared

COLUMNS = ("source", "sources", "loss_weights", "position_ids", "subtree_end", "owner")  # of our rows, beside TRL's


class StepTrainer(SFTTrainer):
    """An `SFTTrainer` with an exact loss, declared parameter groups, schedule and noise, and a guard on every step.

    Its rows are separate or packed, as `rows` makes them; a model that reads packed ones is first proven to do so exactly.

    Args:
        recipe: resolved.
        **kwargs: as `trl.SFTTrainer` takes them.
    """

    loss_is_scaled_for_ga = True  # by the weight of the whole step, for every model class
    neftune_noise_alpha: Any
    optimizer_cls_and_kwargs: Any
    lr_scheduler: Any

    def __init__(self, recipe: Recipe, **kwargs: Any):
        engines.ask_for_parts(kwargs["args"])
        super().__init__(**kwargs)
        engines.ready(self)
        self.guard = Guard(recipe.bad_step)
        self.unmoved: dict[str, str] = {}
        self.add_callback(FirstSteps(self.accelerator, self._name_unmoved))
        self._recipe = recipe
        self.data_collator: Any = partial(collated, self.data_collator)
        self._noise = Neftune(self.model, self.neftune_noise_alpha)
        self.neftune_noise_alpha = None  # or upstream adds its own
        self._tally, self._evaluated = Tally(), Tally()
        self.token_accuracy = 0.0  # of the newest evaluation
        self._since, self._paused = 0.0, 0.0  # seconds: when the first step since the last log began, and spent in evaluations since
        self._batches: list[dict[str, Any]] = []
        self._taken = 0  # micro-batches of the step, of this process
        self._step_loss: Any = 0.0
        self._step_weight: Any = 1.0
        self.packed = "subtree_end" in (getattr(self.train_dataset, "column_names", None) or ())
        if self.packed:
            attention.install(self.model)
            prove(self.model, len(self.processing_class))

    # The loss

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns: Any = [*dict.fromkeys([*self._signature_columns, *COLUMNS])]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Packed rows in random order; separate ones in steps of similar lengths, and those in random order.

        Which rows a step has depends on how many it has, not on how many processes share them.
        """
        dataset = train_dataset or self.train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or dataset is None:
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        if self.packed:
            return Shuffled(len(dataset), seed)
        step = self.args.train_batch_size * self.accelerator.num_processes * self.args.gradient_accumulation_steps
        return LengthGrouped([len(ids) for ids in dataset["input_ids"]], step, seed)

    def _get_num_items_in_batch(self, batch_samples: list, device: Any) -> Tensor | None:
        """What the loss of a step is divided by: the supervised tokens of all its batches and processes, or their weight.

        Raises:
            RecipeError: there is none.
        """
        if not batch_samples:
            return None
        self._batches, self._step_loss, self._taken = batch_samples, 0.0, 0
        self._leave_out_repeated(batch_samples[-1])
        if not self._since:
            self._since, self._paused = perf_counter(), 0.0
        mine = torch.stack([loss_weights(batch).sum() for batch in batch_samples]).sum().to(device)
        self._step_weight = self.accelerator.reduce(mine, "sum") / self._copies
        if not self._step_weight > 0:
            rows = ", ".join(gather_object(self._sources()))
            raise RecipeError(f"step {self.state.global_step + 1}: no token of its batch carries loss: {rows}")
        self._tally.add(steps=1 / self.accelerator.num_processes, examples=len(set(self._sources())))
        for batch in batch_samples:
            self._tally.add(positions=batch["input_ids"].numel(), tokens=real(batch), supervised=supervised(batch))
        return self._step_weight

    def _leave_out_repeated(self, batch: dict[str, Any]) -> None:
        """In the last batch of an epoch accelerate repeats rows of its beginning, so that every process has as many: none is learned
        twice. A batch of nothing else stays as it is, with weight 0, so that this process goes along."""
        size = self.args.train_batch_size
        there = len(self.train_dataset) % (size * self._replicas)
        if self._replicas == 1 or not there or not self.accelerator.gradient_state.end_of_dataloader:
            return
        there -= self.accelerator.process_index // self._copies * size
        if there <= 0:
            batch["loss_weights"] = torch.zeros(batch["labels"].shape, device=batch["labels"].device)
            batch["labels"] = torch.full_like(batch["labels"], IGNORED)
        elif there < size:
            batch.update(first_rows(batch, there))

    def training_step(self, model: Any, inputs: dict, num_items_in_batch: Any = None) -> Tensor:
        """Upstream's. Noise and dropout depend on the seed, the step, and the place of the micro-batch in it, whatever came before and
        however many processes share the step."""
        place = self._taken * self._replicas + self.accelerator.process_index // self._copies
        torch.manual_seed(drawn_from(self.args.seed, self.state.global_step, place))
        self._taken += 1
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model: Any, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """This micro-batch's share in the mean negative log-likelihood over the supervised tokens of the whole step, in nats."""
        unlearned = context(inputs)
        sample = spread(unlearned)
        lengths = attention.path_lengths(inputs) if self._noise.alpha else None
        with self._noise.during(inputs, lengths):
            losses, balance, _ = self._token_losses(model, inputs, sample)
        self._tally.add(loss=losses * supervised(inputs), unlearned=unlearned, sample=sample, sample_loss=losses * sample)
        everywhere = loss_weights(inputs).sum() * self._replicas if num_items_in_batch is None else num_items_in_batch
        loss = (losses * loss_weights(inputs)).sum() * self._replicas / everywhere
        if balance is not None:  # a mean per micro-batch, as TRL has it
            loss = loss + self.router_aux_loss_coef * balance / self.current_gradient_accumulation_steps
        self._step_loss = self._step_loss + loss.detach()
        return (loss, None) if return_outputs else loss

    def _token_losses(self, model: Any, inputs: dict, others: Tensor | None = None) -> Scored:
        """What each supervised token costs, and some others."""
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        shown = supervised(inputs) if others is None else supervised(inputs) | others
        asked = {**inputs, "output_router_logits": True} if self.aux_loss_enabled else inputs
        return token_losses(model, head, asked, shown, fused=self.accelerator.device.type == "cuda")

    @property
    def _copies(self) -> int:
        """How many processes have the same batch (tensor, context and sequence parallelism)."""
        return self.get_tp_size() * self.get_cp_size() * self.get_sp_size()

    @property
    def _replicas(self) -> int:
        """Over how many processes the gradient is averaged, which the loss undoes."""
        return self.accelerator.num_processes // self._copies

    # Evaluation

    def prediction_step(self, model: Any, inputs: dict, *args: Any, **kwargs: Any) -> Any:
        """One batch of an evaluation: every supervised token counts alike, and a row that fills up the last batch not at all."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            losses, _, top = self._token_losses(model, inputs)
        assert top is not None  # without gradients it is there
        each = torch.stack([per_conversation(values.float(), inputs) for values in (losses, supervised(inputs), top)], dim=1)
        each = self.accelerator.gather_for_metrics(each)
        self._evaluated.add(loss=each[:, 0], tokens=each[:, 1], top=each[:, 2])
        return (each[:, 0].sum() / each[:, 1].sum()).detach(), None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """transformers', with `eval_loss` the mean over all supervised tokens, in nats, whatever the batches; and `token_accuracy`,
        the share of them that are the model's own first choice."""
        self._evaluated, began = Tally(), perf_counter()
        with still_unprepared(self):
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        sums = self._evaluated.taken(lambda everywhere: everywhere, self.accelerator.device)  # gathered already
        output.metrics[f"{metric_key_prefix}_loss"] = sums["loss"] / sums["tokens"]
        self.token_accuracy = sums["top"] / sums["tokens"]
        self._paused += perf_counter() - began
        return output

    # The optimiser

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW, or what `optim` names, with decay on matrices only; see `optim.groups`. Optimisers that sort parameters
        themselves (Muon, GaLore) do so here too."""
        if self.optimizer is None:
            model = self.model if model is None else model
            kind, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, model)
            if not is_optimizer_factory(kind):
                groups = parameter_groups(model, self.args.weight_decay, self.args.learning_rate, self._recipe.loraplus_lr_ratio)
                self.optimizer_cls_and_kwargs = kind, {"params": groups, **options}
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Linear warm-up, then cosine to the floor; see `optim.schedule`. Another `lr_scheduler_type` is upstream's."""
        if self.lr_scheduler is not None or self.args.lr_scheduler_type != "cosine_with_min_lr":
            return super().create_scheduler(num_training_steps, optimizer)
        declared: Any = self.args.lr_scheduler_kwargs
        floor = declared["min_lr"] / self.args.learning_rate if "min_lr" in declared else declared["min_lr_rate"]
        warmup = self.args.get_warmup_steps(num_training_steps)
        self.lr_scheduler = schedule(optimizer or self.optimizer, warmup, num_training_steps, floor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    # Watching

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With a step's loss go the loss over everything, what it was made of, and what was padding."""
        if "loss" in logs:
            logs.update(self._made_of())
        super().log(logs, start_time)

    def _made_of(self) -> dict[str, float]:
        """Means over the steps since the last log, all processes together."""
        sums = self._tally.taken(lambda mine: self.accelerator.reduce(mine, "sum"), self.accelerator.device)
        if not sums.get("steps"):
            return {}
        seconds, self._since = perf_counter() - self._since - self._paused, 0.0
        rest = sums["unlearned"] * sums["sample_loss"] / sums["sample"] if sums["sample"] else 0.0
        return {
            "loss_all": (sums["loss"] + rest) / (sums["supervised"] + sums["unlearned"]),
            "supervised_tokens_per_step": sums["supervised"] / sums["steps"],
            "supervised_tokens_per_second": sums["supervised"] / seconds,
            "examples_per_step": sums["examples"] / sums["steps"],
            "padding_share": 1 - sums["tokens"] / sums["positions"],
        }

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm of a step's gradient; the step is judged by it before it is taken."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        loss = float(self.accelerator.reduce(torch.as_tensor(self._step_loss, device=self.accelerator.device), "mean"))
        rescaled = self.accelerator.scaler is not None and math.isfinite(loss)  # in float16 it finds its scale by trying
        fault = None if norm is None or (rescaled and not math.isfinite(norm)) else self.guard.fault(loss, float(norm))
        if fault:
            line = self.guard.refuse(self.state.global_step + 1, fault, self._culprits(), self._kept())
            self._warn(f"skipped {line}")
            model.zero_grad()  # the optimiser leaves a tensor without gradient as it is
        self._batches = []
        return norm

    def _culprits(self) -> list[str]:
        """The conversations of the step, worst first, of all processes."""
        if self.accelerator.distributed_type in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
            model = self.accelerator.unwrap_model(self.model)
            found = blame(model, self._batches, lambda row: self._share_and_mean(model, row))
        else:  # weights in parts: no process can look at a row alone
            found = [(0.0, source) for source in self._sources()]
        return [text for _, text in sorted(gather_object(found), reverse=True)]

    def _share_and_mean(self, model: Any, inputs: dict) -> tuple[Tensor, Tensor]:
        """What a batch adds to the loss of the step, and its own loss."""
        with self.compute_loss_context_manager():
            total = (self._token_losses(model, inputs).losses * loss_weights(inputs)).sum()
        return total / self._step_weight, (total / loss_weights(inputs).sum()).detach()

    def _kept(self) -> str:
        saved = get_last_checkpoint(self.args.output_dir) if Path(str(self.args.output_dir)).is_dir() else None
        return f"the last good checkpoint is {saved}, continue from it with --resume" if saved else "no checkpoint has been saved yet"

    def _sources(self) -> list[str]:
        """The conversations of this process's part of the step."""
        return [source for batch in self._batches for source in batch["source"]]

    def _name_unmoved(self, names: dict[str, str], trainable: int) -> None:
        """Say which tensors do not learn.

        Raises:
            RecipeError: none does.
        """
        self.unmoved = names
        if not names:
            return
        listed = [f"{name} {what}" for name, what in names.items()]
        more = f"; and {len(listed) - SHOWN} more, listed in metrics.json" if len(listed) > SHOWN else ""
        text = f"{len(names)} of {trainable} trainable tensors stand still after the first steps: {'; '.join(listed[:SHOWN])}{more}"
        if len(names) == trainable:
            raise RecipeError(text)
        self._warn(text)

    def _warn(self, text: str) -> None:
        if self.is_world_process_zero():
            print(f"warning: {public(text)}", file=sys.stderr)
