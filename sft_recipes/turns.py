"""A conversation and a tokenizer to supervised turns (promises 1 and 2).

The context of a turn is what the chat template renders when the model is served: the messages before it, with the
generation prompt. The turn is what the same template renders after that, up to and including its stop token. Both are
read from renderings, so no template needs to be known beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from .recipe import SupervisionError


class Turn(NamedTuple):
    """One assistant message to be learned.

    Attributes:
        prompt_ids: the served context, token for token.
        completion_ids: what the model must generate after it; the last one is the stop token.
        message_index: which message of the conversation this is.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    message_index: int


def supervise(messages: Sequence[dict], tokenizer: Any, tools: Sequence[dict] | None = None, **template_kwargs: Any) -> list[Turn]:
    """The supervised turns of a conversation: every assistant message without `"train": false`.

    Args:
        messages: the conversation, in the roles and fields that the tokenizer's chat template knows.
        tokenizer: a `transformers` tokenizer with a chat template.
        tools: JSON schemas, passed to the template.
        **template_kwargs: passed to the template, as they will be when served.

    Returns:
        one `Turn` per learned message, in order. `prompt_ids` equals `apply_chat_template(messages[:k], tools=tools,
        add_generation_prompt=True, **template_kwargs)`.

    Raises:
        SupervisionError: the template refuses the messages, or its rendering of a turn does not continue its prompt.
    """
    kwargs = {"tools": tools or None, **template_kwargs}
    return [
        _turn(messages, k, tokenizer, kwargs)
        for k, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("train", True)
    ]


def _turn(messages: Sequence[dict], k: int, tokenizer: Any, kwargs: dict) -> Turn:
    prompt = _render(messages[:k], k, tokenizer, add_generation_prompt=True, **kwargs)
    whole = _render(messages[: k + 1], k, tokenizer, **kwargs)
    if not whole.startswith(prompt):
        raise SupervisionError(_difference(prompt, whole, k))
    completion = whole[len(prompt) :]
    end = _end_of_stop_token(completion, tokenizer)
    if end is None:
        tail = completion[-40:]
        raise SupervisionError(f"message {k}: no special token ends the turn, which reads ...{tail!r}; the model would never stop")
    prompt_ids = _ids(prompt, tokenizer)
    together = _ids(prompt + completion[:end], tokenizer)
    if together[: len(prompt_ids)] == prompt_ids:
        return Turn(prompt_ids, together[len(prompt_ids) :], k)
    # Tokens merge across the boundary: a served model starts from the prompt's own tokens, so the turn is encoded alone.
    return Turn(prompt_ids, _ids(completion[:end], tokenizer), k)


def _render(messages: Sequence[dict], k: int, tokenizer: Any, **kwargs: Any) -> str:
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, **kwargs)
    except Exception as error:  # jinja's errors, and whatever a template's own filters raise
        raise SupervisionError(f"message {k}: the chat template refuses the conversation: {error}") from error


def _ids(text: str, tokenizer: Any) -> list[int]:
    # The template writes the BOS itself.
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _end_of_stop_token(completion: str, tokenizer: Any) -> int | None:
    """Where the first special token of the run that ends the text ends; special tokens and white space make the run."""
    specials = "|".join(re.escape(token) for token in sorted(tokenizer.all_special_tokens, key=len, reverse=True))
    run = re.search(rf"(?:(?:{specials})\s*)+\Z", completion) if specials else None
    first = re.match(specials, run[0]) if run else None
    return run.start() + first.end() if run and first else None


def _difference(prompt: str, whole: str, k: int) -> str:
    at = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(len(prompt), len(whole)))
    served, rendered = prompt[max(0, at - 20) : at + 40], whole[max(0, at - 20) : at + 40]
    return (
        f"message {k}: the rendered turn does not continue the served prompt; served: ...{served!r}, rendered: ...{rendered!r}. "
        "Look for a `template_kwargs` (such as enable_thinking) or a message field (such as reasoning_content) that aligns them"
    )


def stop_ids(turns: Sequence[Turn]) -> set[int]:
    """The stop tokens found in training: what generation halts at and the deployed folder declares."""
    return {turn.completion_ids[-1] for turn in turns}
