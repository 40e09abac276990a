"""Generations to scores and samples (promise 8).

Every learned turn of a held-out conversation is generated from its served context, greedily, until a stop token or the
length limit. A conversation scores as its worst turn does, so a score of 0.9 means nine conversations in ten right throughout.
Beside the recipe's own scores every reply has `stops`, and its manner: `length`, `repeats`, `echoes_prompt` (see `scores.manner`).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.distributed.fsdp import FSDPModule
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList
from transformers.integrations import is_deepspeed_zero3_enabled

from .recipe import RecipeError
from .replies import parse
from .scores import MANNER, distinct, manner_of

ROUND = 32  # new tokens of the first round of generations; most replies are done then


@dataclass
class Question:
    """A held-out turn: its served context, and what should follow.

    Attributes:
        source: the conversation it belongs to (`file:line`).
        message_index: which message of it is asked for.
        asked: what the message before it says.
        prompt_ids: the served context.
        expected: the reference message, with `tools`, the schemas on offer, `asked`, and the row's `tests` where it has some.
        user: the last that a user says before it, which a tool's result may follow.
    """

    source: str
    message_index: int
    asked: str
    prompt_ids: list[int]
    expected: dict[str, Any]
    user: str = ""


@dataclass
class Sample:
    """One generation: the question, the ids that came back (stop token included), and its scores; `manner` names those not the recipe's."""

    question: Question
    reply_ids: list[int]
    reply: dict[str, Any]
    scores: dict[str, float] = field(default_factory=dict)
    manner: frozenset[str] = frozenset()

    def kept(self) -> dict[str, Any]:
        """Plain data for a checkpoint, without the question; `recalled` reads it."""
        return {"reply_ids": self.reply_ids, "reply": self.reply, "scores": self.scores, "manner": sorted(self.manner)}

    def as_dict(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Plain data for `samples.jsonl`, with texts for ids."""
        asked = asdict(self.question)
        del asked["user"]
        prompt = tokenizer.decode(asked.pop("prompt_ids"))
        return {**asked, "prompt": prompt, "reply": tokenizer.decode(self.reply_ids), "parsed": self.reply, "scores": self.scores}


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    stop_ids: Iterable[int],
    pad_id: int,
    max_new_tokens: int,
    batch_size: int = 64,
    desc: str = "generating",
    streamer: Any = None,
    leave: Callable[[], Any] = lambda: False,
) -> list[list[int]]:
    """Greedy continuations, each up to and including its stop token or cut at the limit.

    Prompts of similar length share a batch, padded on the left. It goes in rounds of 32 tokens, 64, 128, ...: who has stopped leaves, and
    the others close ranks, so that a reply that never ends does not hold up all of its batch. Where each process holds a part of the
    weights, all of them call this together, each with prompts of its own, as many as it has.

    Args:
        prompts: token ids, one list per prompt.
        stop_ids: generation halts after any of these.
        pad_id: fills the left of shorter prompts; never attended to.
        max_new_tokens: limit per continuation, in tokens.
        batch_size: prompts, at most.
        streamer: transformers' for the tokens as they come, of one prompt; all of it is one round.
        leave: asked after each token; once it is true, the replies end where they are.

    Returns:
        the new ids of each prompt, in the order of `prompts`.
    """
    stops, replies = set(stop_ids), [list[int]() for _ in prompts]
    left, together, training = list(range(len(prompts))), _in_parts(model), model.training
    model.eval()
    with tqdm(total=len(prompts), desc=desc, disable=None if _first() else True, delay=2, leave=False) as bar:
        for limit in [max_new_tokens] if streamer else _rounds(max_new_tokens):
            order = sorted(left, key=lambda i: len(prompts[i]) + len(replies[i]))
            batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
            if together:  # a process that is done takes part in the others' forward passes, with a batch of no prompts
                batches += [[]] * (max(gather_object([len(batches)])) - len(batches))
            for chosen in batches:
                if leave() and not together:
                    break
                asked = [prompts[i] + replies[i] for i in chosen] or [sorted(stops)[:1]]
                found = _continued(model, asked, stops, pad_id, limit if chosen else 1, streamer, together, leave)
                for i, new in zip(chosen, found, strict=False):
                    replies[i] += _until_stop(new, stops)
                bar.update(sum(replies[i][-1] in stops for i in chosen if replies[i]))
            left = [i for i in left if not replies[i] or replies[i][-1] not in stops]
            if not batches or (leave() and not together):
                break
    model.train(training)
    return replies


def _rounds(limit: int) -> Iterator[int]:
    """New tokens of each round, in all `limit`: each twice those of the one before."""
    size = ROUND
    while limit > 0:
        yield min(size, limit)
        size, limit = 2 * size, limit - size


def _continued(
    model: PreTrainedModel,
    asked: list[list[int]],
    stops: set[int],
    pad_id: int,
    limit: int,
    streamer: Any,
    together: bool,
    leave: Callable[[], Any],
) -> list[list[int]]:
    """What follows each prompt of a batch, `limit` tokens at most; what follows a stop token means nothing."""
    ids, mask = _left_padded(asked, pad_id)
    inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
    config = GenerationConfig(max_new_tokens=limit, do_sample=False, eos_token_id=sorted(stops), pad_token_id=pad_id)
    left = StoppingCriteriaList([_Left(leave)])
    out = model.generate(**inputs, generation_config=config, streamer=streamer, synced_gpus=together, stopping_criteria=left)
    return out[:, ids.shape[1] :].tolist()


class _Left(StoppingCriteria):
    """Every reply is at its end once `leave` is true; where processes go in step, this one follows the others from there on."""

    def __init__(self, leave: Callable[[], Any]):
        self.leave = leave

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), bool(self.leave()), device=input_ids.device)


def _first() -> bool:
    """Whether this is the only process, or the first of several: they share a terminal."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def _in_parts(model: PreTrainedModel) -> bool:
    """Whether each process holds a part of the weights, so that a forward pass waits for all of them (FSDP2, ZeRO-3)."""
    if not torch.distributed.is_initialized():
        return False
    return is_deepspeed_zero3_enabled() or any(isinstance(module, FSDPModule) for module in model.modules())


def _left_padded(prompts: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, both `(batch, longest)`."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


def _until_stop(ids: list[int], stops: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids) - 1)
    return ids[: end + 1]


def judge(
    questions: Sequence[Question],
    replies: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: set[int],
    score: Callable[[dict, dict], dict[str, float]],
) -> list[Sample]:
    """Parse and score each reply; `stops` (halted by itself before the limit) and its manner are always among the scores.

    A score of the recipe's that has the name of one of the manner's takes its place.
    """
    users = list(dict.fromkeys(question.user for question in questions))
    asked_ids = dict(zip(users, tokenizer(users, add_special_tokens=False)["input_ids"], strict=True)) if users else {}
    samples = []
    for question, ids in zip(questions, replies, strict=True):
        stopped = bool(ids) and ids[-1] in stop_ids
        reply = {**parse(tokenizer, question.prompt_ids, ids, question.expected.get("tools"), stop_ids), "stopped": stopped}
        own = {**_scored(score, reply, question), "stops": float(stopped)}
        manner = {k: value for k, value in manner_of(ids, stopped, asked_ids[question.user]).items() if k not in own}
        samples.append(Sample(question, ids, reply, {**own, **manner}, frozenset(manner)))
    return samples


def _scored(score: Callable[[dict, dict], dict[str, float]], reply: dict, question: Question) -> dict[str, float]:
    """What the recipe's hook says of a reply.

    Raises:
        RecipeError: it raises, or gives something else than numbers by name; with the turn that it was asked of.
    """
    where = f"{question.source}, message {question.message_index}"
    try:
        found = score(reply, question.expected)
    except (Exception, SystemExit) as error:  # it is the person's own code
        at = traceback.extract_tb(error.__traceback__)[-1]
        raise RecipeError(f"{where}: score() raised {type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno})") from error
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, (int, float)) for k, v in found.items()):
        raise RecipeError(f"{where}: score() gave {str(found)[:80]}, expected numbers by name, as in {{'exact': 1.0}}")
    return found


def recalled(kept: Sequence[dict[str, Any]], questions: Sequence[Question]) -> list[Sample]:
    """Samples from what `Sample.kept` gave of each, in the order of the questions."""
    return [Sample(q, s["reply_ids"], s["reply"], s["scores"], frozenset(s["manner"])) for q, s in zip(questions, kept, strict=True)]


def share(questions: Sequence[Question], rank: int, processes: int) -> Sequence[Question]:
    """The questions of one process out of several; `gathered` puts the answers together again."""
    return questions[rank::processes]


def gathered(samples: list[Sample], questions: Sequence[Question]) -> list[Sample]:
    """Every process's samples, on every process, in the order of the questions."""
    position = {(q.source, q.message_index): i for i, q in enumerate(questions)}
    return sorted(gather_object(samples), key=lambda s: position[s.question.source, s.question.message_index])


def scores(samples: Sequence[Sample], **others: float) -> dict[str, float]:
    """Means over conversations, the manner last; a conversation scores as its worst turn. The parts of a score (`exact_3_terms`) follow it.

    Args:
        samples: every learned turn, in order.
        others: what else was measured (`eval_loss`), between the recipe's scores and the manner.
    """
    conversations: dict[str, list[Sample]] = {}
    for sample in samples:
        conversations.setdefault(sample.question.source, []).append(sample)
    found = {name: None for sample in samples for name in sample.scores}
    manner = {name: None for sample in samples for name in sample.scores if name in sample.manner}
    means = {name: round(fmean(_worst(name, turns) for turns in _with(name, conversations)), 4) for name in found}
    own = [name for name in found if name not in manner]
    ranked = sorted(own, key=lambda name: (min(own.index(of) for of in own if f"{name}_".startswith(f"{of}_")), name))
    whole = {**{name: means[name] for name in ranked}, **others, **{name: means[name] for name in MANNER if name in manner}}
    if samples and "distinct" not in whole:
        whole["distinct"] = round(distinct([s.question.prompt_ids for s in samples], [s.reply_ids for s in samples]), 4)
    return whole


def _with(name: str, conversations: dict[str, list[Sample]]) -> Iterator[list[Sample]]:
    """Of each conversation the turns that have a score, where any has."""
    chosen = ([turn for turn in turns if name in turn.scores] for turns in conversations.values())
    return (turns for turns in chosen if turns)


def _worst(name: str, turns: Sequence[Sample]) -> float:
    """A conversation's score: the lowest of its turns; of the manner the highest, as less is better, and of `length` the mean."""
    values = [turn.scores[name] for turn in turns]
    if name not in turns[0].manner:
        return min(values)
    return fmean(values) if name == "length" else max(values)
