"""A conversation and a tokenizer to supervised turns (promises 1 and 2).

The context of a turn is what the chat template renders when the model is served: the messages before it, with the
generation prompt. The turn is what the same template renders after that, up to and including its stop token. Both are
read from renderings, so no template needs to be known beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .closing import Closing, find_closing, kind
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
        SupervisionError: the template refuses the messages, leaves no trace of a turn, or renders it in another way than
            the served prompt begins it.
    """
    return Supervisor(tokenizer, **template_kwargs).turns(messages, tools)


class Supervisor:
    """`supervise` for many conversations: what it learns of a template's closings, it learns once.

    Args:
        tokenizer: with a chat template.
        **template_kwargs: passed to the template.
    """

    def __init__(self, tokenizer: Any, **template_kwargs: Any):
        self.tokenizer, self.kwargs = tokenizer, template_kwargs
        self.controls = control_tokens(tokenizer)
        self.closings: dict[tuple[bool, ...], Closing | None] = {}

    def turns(self, messages: Sequence[dict], tools: Sequence[dict] | None = None) -> list[Turn]:
        """See `supervise`."""
        learned = [k for k, m in enumerate(messages) if m["role"] == "assistant" and m.get("train", True)]
        return [self._turn(messages, k, tools or None) for k in learned]

    def _turn(self, messages: Sequence[dict], k: int, tools: Sequence[dict] | None) -> Turn:
        try:
            prompt = self._render(messages[:k], tools, add_generation_prompt=True)
            whole = self._render(messages[: k + 1], tools)
        except Exception as error:  # jinja's errors, and whatever a template's own filters raise
            raise SupervisionError(f"message {k}: the chat template refuses the conversation: {error}") from error
        if not whole.startswith(prompt):
            raise SupervisionError(_difference(prompt, whole, k))
        rendered = whole[len(prompt) :]
        closing = self._closing(messages, k, tools)
        completion = rendered[: len(rendered) - len(closing.rest)] + closing.appended if closing else ""
        if not closing or not rendered.endswith(closing.rest) or not completion.endswith(self.controls):
            raise SupervisionError(f"message {k}: {_no_end(messages[k], rendered)}")
        return self._encoded(prompt, completion, k)

    def _encoded(self, prompt: str, completion: str, k: int) -> Turn:
        prompt_ids = self._ids(prompt)
        together = self._ids(prompt + completion)
        if together[: len(prompt_ids)] == prompt_ids:
            return Turn(prompt_ids, together[len(prompt_ids) :], k)
        # Tokens merge across the boundary: a served model starts from the prompt's own tokens, so the turn is encoded alone.
        return Turn(prompt_ids, self._ids(completion), k)

    def _render(self, messages: Sequence[dict], tools: Sequence[dict] | None, add_generation_prompt: bool = False) -> str:
        return self.tokenizer.apply_chat_template(
            list(messages), tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt, **self.kwargs
        )

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]  # the template writes the BOS itself

    def _closing(self, messages: Sequence[dict], k: int, tools: Sequence[dict] | None) -> Closing | None:
        found = (*kind(messages[k]), bool(tools))
        if found not in self.closings:
            self.closings[found] = find_closing(lambda probe: self._render(probe, tools), messages, k, self.controls)
        return self.closings[found]


def control_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The tokenizer's control tokens: those no text of a person's can be encoded to, unless they are written out."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(dict.fromkeys([*tokenizer.all_special_tokens, *added]))


def _no_end(message: dict, rendered: str) -> str:
    calls = message.get("tool_calls")
    if calls and (name := calls[-1].get("function", calls[-1])["name"]) not in rendered:
        return f"the chat template leaves no trace of its tool call to {name}; write calls as text, or use a template with tools"
    return f"no control token ends the turn, which reads ...{rendered[-40:]!r}; the model would never stop"


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
