"""Turns to separate rows: one sequence each, `input_ids` and `labels` of equal length, and an account of every conversation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ..recipe import RecipeError
from ..shelf import collected
from ..turns import Turn
from .account import IGNORED, Supervision
from .overlong import fitting, length, told


class Path(NamedTuple):
    """One sequence of tokens, a label for each (-100 where nothing is learned), and the turns it trains."""

    input_ids: list[int]
    labels: list[int]
    turns: list[Turn]

    def weights(self) -> list[float]:
        """A loss weight for each token; 0 where nothing is learned."""
        found = [float(label != IGNORED) for label in self.labels]
        for turn in self.turns:
            start = len(turn.prompt_ids)
            found[start : start + len(turn.completion_ids)] = [turn.weight] * len(turn.completion_ids)
        return found

    def unmasked(self) -> Path:
        """The same tokens, of which every one that has a predecessor is learned, all alike."""
        return Path(self.input_ids, [IGNORED, *self.input_ids[1:]], [])


def paths(turns: Sequence[Turn]) -> list[Path]:
    """The fewest sequences that train every turn in its served context.

    Where a turn's prompt continues what came before, token for token, the turns share one sequence. Where the template
    rewrote history, the turn begins a sequence of its own.
    """
    found: list[Path] = []
    for turn in turns:
        if not found or turn.prompt_ids[: len(found[-1].input_ids)] != found[-1].input_ids:
            found.append(Path([], [], []))
        input_ids, labels, trained = found[-1]
        context, learned = turn.prompt_ids[len(input_ids) :], turn.completion_ids
        input_ids += [*context, *learned]
        labels += [IGNORED] * len(context) + learned
        trained.append(turn)
    return found


def build_rows(
    supervised: Iterable[tuple[str, Sequence[Turn]]],
    max_length: int | None,
    mask: str = "completion",
    loss_per: str = "token",
    overlong: str = "trim",
) -> tuple[Sequence[dict[str, Any]], Supervision]:
    """Rows for training, and the account of them.

    Args:
        supervised: each conversation's `file:line` and turns.
        max_length: a turn fits when its prompt and itself have at most this many tokens; `None` keeps all.
        mask: `everything` labels the context as well.
        loss_per: `example` gives every conversation the same weight, spread over its supervised tokens.
        overlong: a conversation with turns that do not fit keeps the others (`trim`; nothing is cut within a turn), is left out
            whole (`drop`), or is a fault (`refuse`). What is left out is listed in the account.

    Returns:
        rows `{"input_ids", "labels", "source"}`, with `loss_weights` (one float a token) where the tokens of the dataset do not
        all count alike; and the `Supervision`.

    Raises:
        RecipeError: every conversation that is too long, where these are refused.
    """
    account, weighted = Supervision(), set[bool]()
    rows = collected(_rows(supervised, max_length, mask, loss_per, overlong, account, weighted))
    if overlong == "refuse" and account.dropped:
        ways = f"--max_length {account.longest} keeps all, or choose --overlong trim or --overlong drop"
        raise RecipeError(*(f"{place}; {ways}" for place in account.dropped))
    return collected(map(with_weights, rows)) if len(weighted) > 1 else rows, account


def _rows(
    supervised: Iterable[tuple[str, Sequence[Turn]]],
    max_length: int | None,
    mask: str,
    loss_per: str,
    overlong: str,
    account: Supervision,
    weighted: set[bool],
) -> Iterator[dict[str, Any]]:
    """The rows of each conversation, with `loss_weights` where its own tokens ask for them; `weighted` gets whether they do."""
    for source, turns in supervised:
        sequences = _kept(source, turns, max_length, mask, overlong, account)
        weights = loss_per == "example" or any(turn.weight != 1 for path in sequences for turn in path.turns)
        found = _loss_weights(sequences, loss_per) if weights else []
        for number, path in enumerate(sequences):
            weighted.add(weights)
            row: dict[str, Any] = {"input_ids": path.input_ids, "labels": path.labels, "source": source}
            yield {**row, "loss_weights": found[number]} if weights else row


def with_weights(row: dict[str, Any]) -> dict[str, Any]:
    """A row with `loss_weights`, where it has none 1 for each labelled token, as it must have beside rows that have some."""
    return row if "loss_weights" in row else {**row, "loss_weights": [float(label != IGNORED) for label in row["labels"]]}


def _kept(source: str, turns: Sequence[Turn], max_length: int | None, mask: str, overlong: str, account: Supervision) -> list[Path]:
    """The sequences of a conversation's turns that are trained; the account has what they are and what was left out."""
    fit = fitting(turns, max_length)
    if overlong != "trim" and len(fit) < len(turns):
        fit = []
    sequences = _sequences(fit, mask)
    account.conversations += 1
    account.turns += len(fit)
    account.rows += len(sequences)
    account.tokens += sum(len(path.input_ids) for path in sequences)
    account.supervised_tokens += _labelled(sequences)
    account.longest = max(account.longest, *map(length, turns), 0)
    if not turns:
        account.unsupervised.append(source)
    elif max_length is not None and len(fit) < len(turns):
        (account.trimmed if fit else account.dropped).append(told(source, turns, max_length))
        account.lost_tokens += _labelled(_sequences(turns, mask)) - _labelled(sequences)
    return sequences


def _sequences(turns: Sequence[Turn], mask: str) -> list[Path]:
    return [path.unmasked() if mask == "everything" else path for path in paths(turns)]


def _labelled(sequences: Sequence[Path]) -> int:
    return sum(len(path.labels) - path.labels.count(IGNORED) for path in sequences)


def _loss_weights(sequences: Sequence[Path], loss_per: str) -> list[list[float]]:
    """The weights of a conversation's rows: as its messages have them, or scaled so that they sum to 1."""
    found = [path.weights() for path in sequences]
    total = sum(map(sum, found)) if loss_per == "example" else 1.0
    return [[weight / total for weight in row] for row in found] if total not in (0.0, 1.0) else found
