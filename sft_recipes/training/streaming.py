"""`StreamingTrainer`: a `LastingTrainer` that may learn from a stream, which it never reads as a whole.

To transformers the stream is a dataset of as many rows as the run takes, read in order. So every process reads its own share of
each step, a resumed run begins at its row without a look at those before, and no row is repeated to fill a batch up.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import SequentialSampler

from .. import checkpoints
from ..recipe import RecipeError
from ..stream import Broken, Order, RowStream
from .lasting import LastingTrainer


class StreamingTrainer(LastingTrainer):
    """A `LastingTrainer` that trains on a `datasets.Dataset`, or after `learn_from` on a stream.

    Args:
        **kwargs: as `LastingTrainer` takes them.
    """

    stream: RowStream | None = None

    def learn_from(self, stream: RowStream, stops: set[int]) -> None:
        """Train on a stream, instead of the dataset that TRL was given: it takes none but its own kinds.

        Args:
            stream: of rows.
            stops: stop tokens, to which those are added that the stream shows.
        """
        self.stream, self._stops = stream, stops
        self.train_dataset: Any = stream

    @property
    def _rows_a_step(self) -> int:
        """Rows of an optimiser step, all processes together."""
        return self.args.train_batch_size * self._replicas * self.args.gradient_accumulation_steps

    def get_train_dataloader(self) -> Any:
        """Upstream's; a stream begins anew."""
        if self.stream is not None:
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            drawn = Order(self._rows_a_step, seed, self.args.train_sampling_strategy, self.packed)
            self.stream.begin(self.args.max_steps * self._rows_a_step, drawn)
        return super().get_train_dataloader()

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """A stream's rows have been drawn already."""
        if self.stream is None:
            return super()._get_train_sampler(train_dataset)
        return SequentialSampler(self.stream)

    def _get_num_items_in_batch(self, batch_samples: list, device: Any) -> Tensor | None:
        """`StepTrainer`'s, for a step whose rows are all in order.

        Raises:
            Broken: they are not.
        """
        if self.stream is not None and batch_samples:
            self.stream.reach((self.state.global_step + 1) * self._rows_a_step)
            self._stops |= self.stream.stops
        return super()._get_num_items_in_batch(batch_samples, device)

    def _run_epoch(self, **kwargs: Any) -> None:
        """Upstream's; what was learned until the stream broke is saved.

        Raises:
            RecipeError: every fault of the window that cannot be trained, and where the run goes on.
        """
        try:
            super()._run_epoch(**kwargs)
        except Broken as broken:
            raise RecipeError(*broken.faults, self._saved()) from broken

    def _saved(self) -> str:
        """A checkpoint of the steps that were taken, unless there is one; and a word of it."""
        step = self.state.global_step
        if not step:
            return "no step was taken: mend this, and train again"
        folder = self.checkpoints / checkpoints.name(step)
        if self.fault_of(folder):
            self._save_checkpoint(self.model_wrapped, None)
        return f"step {step} is saved in {folder}: mend this, and the same command goes on from there"

    def _progress(self) -> dict[str, Any]:
        """With the place in the stream."""
        return {**super()._progress(), "stream": self.stream.state_dict() if self.stream is not None else None}

    def take_up(self, progress: dict[str, Any]) -> None:
        """With the place in the stream, and the stop tokens seen until then."""
        super().take_up(progress)
        if self.stream is not None:
            self.stream.load_state_dict(progress["stream"])
            self._stops |= self.stream.stops

    def streamed(self) -> dict[str, Any]:
        """What was read of the stream, and trained, as `train`; nothing without one."""
        return {} if self.stream is None else {"train": self.stream.account(self.state.global_step * self._rows_a_step)}
