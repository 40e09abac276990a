"""The account of a dataset: every supervised token that went in is trained, or listed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..recipe import RecipeError
from ..turns import Turn

IGNORED = -100  # the label of a position that carries no loss, as `torch.nn.CrossEntropyLoss` has it


@dataclass
class Supervision:
    """The account of a dataset: what went in, what is trained, what was left out and where it stands.

    Attributes:
        lost_tokens: supervised tokens of the turns that were left out because they are longer than `max_length`.
        longest: tokens of the longest turn with its prompt, kept or not: the `max_length` that keeps all.
        trimmed: conversations of which some turns are longer than `max_length`, and the others are trained.
        dropped: conversations that were left out whole because they, or some of their turns, are longer than `max_length`.
        unsupervised: conversations of which no message is to be learned; nothing of them is lost.
    """

    conversations: int = 0
    turns: int = 0
    rows: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    lost_tokens: int = 0
    longest: int = 0
    trimmed: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    unsupervised: list[str] = field(default_factory=list)

    @property
    def lost_share(self) -> float:
        """Share of the supervised tokens that is lost, 0 to 1."""
        return self.lost_tokens / ((self.lost_tokens + self.supervised_tokens) or 1)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `metrics.json`; token counts are totals over the dataset."""
        share = self.supervised_tokens / self.tokens if self.tokens else 0.0
        return {**vars(self), "supervised_share": round(share, 4), "lost_share": round(self.lost_share, 4)}


def balance(
    conversations: Iterable[Sequence[Turn]], rows: Sequence[dict[str, Any]], account: Supervision, mask: str = "completion"
) -> None:
    """Count again what went in and what will be trained, each from its own end, and compare both with the account.

    Args:
        conversations: the turns of each, as `supervise` gave them.
        rows: finished, with `labels` and `source`: a position that is labelled and has a predecessor in its row is trained.
        account: of these rows, as it was kept while they were made.
        mask: as `build_rows` takes it.

    Raises:
        RecipeError: supervised tokens in are not those trained and those listed as lost, with all three numbers; or a row begins
            with a label, which nothing predicts.
    """
    came = sum(_supervised(turns, mask) for turns in conversations)
    if first := [row["source"] for row in rows if row["labels"][0] != IGNORED]:
        raise RecipeError(*(f"{source}: a turn's prompt has no tokens, so nothing predicts the first of its answer" for source in first))
    trained = sum(len(row["labels"]) - row["labels"].count(IGNORED) for row in rows)
    if came != trained + account.lost_tokens or trained != account.supervised_tokens:
        raise RecipeError(
            f"{came:,} supervised tokens went in, {trained:,} are trained and {account.lost_tokens:,} listed as lost "
            f"(the account has {account.supervised_tokens:,} trained): these must agree; it is no fault of the data, please report it"
        )


def conserved(separate: int, packed: Sequence[Any]) -> None:
    """Count the supervised tokens of packed rows again.

    Args:
        separate: those of the separate rows.
        packed: the `labels` of each packed row, an array.

    Raises:
        RecipeError: they are more or fewer.
    """
    found = sum(int((labels != IGNORED).sum()) for labels in packed)
    if found != separate:
        raise RecipeError(
            f"{separate:,} supervised tokens went into packed rows, {found:,} came out: these must agree; "
            "it is no fault of the data, please report it"
        )


def _supervised(turns: Sequence[Turn], mask: str) -> int:
    """Tokens that turns would train, without a look at what rows become of them."""
    if mask != "everything":
        return sum(len(turn.completion_ids) for turn in turns)
    count = 0
    before: list[int] = []
    for turn in turns:
        continues = bool(before) and turn.prompt_ids[: len(before)] == before
        count += len(turn.prompt_ids) + len(turn.completion_ids) - (len(before) if continues else 1)  # nothing predicts a first token
        before = turn.prompt_ids + turn.completion_ids
    return count
