"""Generations to scores and samples (promise 8).

Every learned turn of a held-out conversation is generated from its served context, greedily, until a stop token or the
length limit. A conversation scores as its worst turn does, so a score of 0.9 means nine conversations in ten right throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .replies import parse


@dataclass
class Question:
    """A held-out turn: its served context, and what should follow.

    Attributes:
        source: the conversation it belongs to (`file:line`).
        message_index: which message of it is asked for.
        asked: what the message before it says.
        prompt_ids: the served context.
        expected: the reference message, with `tools`, the schemas on offer, and `asked`.
    """

    source: str
    message_index: int
    asked: str
    prompt_ids: list[int]
    expected: dict[str, Any]


@dataclass
class Sample:
    """One generation: the question, the ids that came back (stop token included), and its scores."""

    question: Question
    reply_ids: list[int]
    reply: dict[str, Any]
    scores: dict[str, float] = field(default_factory=dict)

    def as_dict(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Plain data for `samples.jsonl`, with texts for ids."""
        asked = asdict(self.question)
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
) -> list[list[int]]:
    """Greedy continuations, each up to and including its stop token or cut at the limit.

    Prompts of similar length share a batch, padded on the left.

    Args:
        prompts: token ids, one list per prompt.
        stop_ids: generation halts after any of these.
        pad_id: fills the left of shorter prompts; never attended to.
        max_new_tokens: limit per continuation, in tokens.
        streamer: transformers' for the tokens as they come, of one prompt.

    Returns:
        the new ids of each prompt, in the order of `prompts`.
    """
    stops = sorted(stop_ids)
    config = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=stops, pad_token_id=pad_id)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    replies: list[list[int]] = [[]] * len(prompts)
    training = model.training
    model.eval()
    batches = range(0, len(order), batch_size)
    for start in tqdm(batches, desc=desc, disable=None, delay=2, leave=False):
        chosen = order[start : start + batch_size]
        ids, mask = _left_padded([prompts[i] for i in chosen], pad_id)
        inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
        out = model.generate(**inputs, generation_config=config, streamer=streamer)
        for i, new in zip(chosen, out[:, ids.shape[1] :].tolist(), strict=True):
            replies[i] = _until_stop(new, set(stops))
    model.train(training)
    return replies


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
    """Parse and score each reply; `stops` (halted by itself before the limit) is always among the scores."""
    samples = []
    for question, ids in zip(questions, replies, strict=True):
        stopped = bool(ids) and ids[-1] in stop_ids
        reply = {**parse(tokenizer, question.prompt_ids, ids, question.expected.get("tools"), stop_ids), "stopped": stopped}
        samples.append(Sample(question, ids, reply, {**score(reply, question.expected), "stops": float(stopped)}))
    return samples


def share(questions: Sequence[Question], rank: int, processes: int) -> Sequence[Question]:
    """The questions of one process out of several; `gathered` puts the answers together again."""
    return questions[rank::processes]


def gathered(samples: list[Sample], questions: Sequence[Question]) -> list[Sample]:
    """Every process's samples, on every process, in the order of the questions."""
    position = {(q.source, q.message_index): i for i, q in enumerate(questions)}
    return sorted(gather_object(samples), key=lambda s: position[s.question.source, s.question.message_index])


def scores(samples: Sequence[Sample]) -> dict[str, float]:
    """Means over conversations; a conversation scores as its worst turn. The parts of a score (`exact_3_terms`) follow it."""
    worst: dict[str, dict[str, float]] = {}
    for sample in samples:
        conversation = worst.setdefault(sample.question.source, dict(sample.scores))
        for name, value in sample.scores.items():
            conversation[name] = min(value, conversation.get(name, value))
    found = list({name: None for conversation in worst.values() for name in conversation})
    names = sorted(found, key=lambda name: (min(found.index(of) for of in found if f"{name}_".startswith(f"{of}_")), name))
    return {name: round(fmean(c[name] for c in worst.values() if name in c), 4) for name in names}
