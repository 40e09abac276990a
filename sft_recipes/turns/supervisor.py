"""A conversation and a tokenizer to supervised turns (promises 1 and 2).

The context of a turn is what the chat template renders when the model is served: the messages before it, with the
generation prompt. The turn is what the same template renders after that, up to and including its stop token. Both are
read from renderings, so no template needs to be known beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ..recipe import SupervisionError
from .closing import Closing, find_closing
from .encoding import Encoder
from .mending import difference, find_mends
from .probes import Probes
from .rendering import REASONING, ChatTemplate, prepared
from .turn import Turn

SPOKEN = ("content", *REASONING)
Conversation = tuple[Sequence[dict], Sequence[dict] | None]  # messages and tools


class Rendered(NamedTuple):
    """A turn as text: the served prompt, and the completion up to its stop token."""

    prompt: str
    completion: str
    message_index: int
    weight: float


def supervise(messages: Sequence[dict], tokenizer: Any, tools: Sequence[dict] | None = None, **template_kwargs: Any) -> list[Turn]:
    """The supervised turns of a conversation: every assistant message without `"train": false`.

    Args:
        messages: the conversation, in roles and fields that the tokenizer's chat template knows. Content may be text or a
            list of text parts, call arguments a mapping or JSON text: a template that reads only the other form gets that.
        tokenizer: a `transformers` tokenizer with a chat template.
        tools: JSON schemas, passed to the template.
        **template_kwargs: passed to the template, as they will be when served.

    Returns:
        one `Turn` per learned message, in order. `prompt_ids` equals `apply_chat_template(messages[:k], tools=tools,
        add_generation_prompt=True, **template_kwargs)`.

    Raises:
        SupervisionError: the template refuses the messages, leaves no trace of a field or of a turn, or renders the turn in
            another way than the served prompt begins it; or a text holds a control token.
    """
    return Supervisor(tokenizer, **template_kwargs).turns(messages, tools)


def learned(messages: Sequence[dict], last_only: bool = False) -> list[int]:
    """Which messages carry loss: assistant messages, not those with `"train": false` or a weight of 0."""
    found = [k for k, m in enumerate(messages) if m["role"] == "assistant" and m.get("train", True) and m.get("weight", 1) != 0]
    return found[-1:] if last_only else found


class Supervisor:
    """`supervise` for many conversations: what it learns of a template, it learns once.

    Args:
        tokenizer: with a chat template.
        last_turn_only: only the last assistant message of a conversation is learned.
        allow_control_tokens: texts may hold the tokenizer's control tokens.
        **template_kwargs: passed to the template.
    """

    def __init__(self, tokenizer: Any, *, last_turn_only: bool = False, allow_control_tokens: bool = False, **template_kwargs: Any):
        self.last_turn_only, self.allow_control_tokens = last_turn_only, allow_control_tokens
        self.template = ChatTemplate(tokenizer, **template_kwargs)
        self.encoder = Encoder(tokenizer)
        self.probes = Probes(self.template.render)
        self.closings: dict[tuple[bool, ...], Closing] = {}
        self.mends: dict[tuple[bool, ...], list[str]] = {}

    def turns(self, messages: Sequence[dict], tools: Sequence[dict] | None = None) -> list[Turn]:
        """See `supervise`."""
        (found,) = self.chunk([(messages, tools)])
        if isinstance(found, SupervisionError):
            raise found
        return found

    def chunk(self, conversations: Sequence[Conversation]) -> list[list[Turn] | SupervisionError]:
        """The turns of each conversation `(messages, tools)`, or the error that says why it has none, in order."""
        return self.encoded(self.rendered(conversations))

    def rendered(self, conversations: Sequence[Conversation]) -> list[list[Rendered] | SupervisionError]:
        """The first half of `chunk`: turns as text."""
        return [_or_error(self._rendered, messages, tools or None) for messages, tools in conversations]

    def encoded(self, rendered: Sequence[list[Rendered] | SupervisionError]) -> list[list[Turn] | SupervisionError]:
        """The second half: turns as ids."""
        texts = [[turn[:2] for turn in turns] if isinstance(turns, list) else [] for turns in rendered]
        pairs = zip(rendered, self.encoder.encode(texts), strict=True)
        return [_or_error(self._turns, turns, ids) if isinstance(turns, list) else turns for turns, ids in pairs]

    def _turns(self, turns: list[Rendered], ids: list[tuple[list[int], list[int]]]) -> list[Turn]:
        return [self._turn(turn, *both) for turn, both in zip(turns, ids, strict=True)]

    def _turn(self, turn: Rendered, prompt_ids: list[int], together: list[int]) -> Turn:
        completion_ids: list[int] | None = together[len(prompt_ids) :]
        if together[: len(prompt_ids)] != prompt_ids:
            # Tokens merge across the boundary: a served model starts from the prompt's own tokens.
            completion_ids = self.encoder.alone(prompt_ids, together, turn.completion)
        if completion_ids is None:
            raise SupervisionError(
                f"message {turn.message_index}: no tokens after the prompt's own spell the turn, which begins {turn.completion[:20]!r}"
            )
        return Turn(prompt_ids, completion_ids, turn.message_index, turn.weight)

    def _rendered(self, messages: Sequence[dict], tools: Sequence[dict] | None) -> list[Rendered]:
        turns = learned(messages, self.last_turn_only)
        messages = messages[: turns[-1] + 1] if turns else []  # what comes after the last turn is context of none
        _raise([f"message {k}: an assistant message with neither content nor tool_calls" for k in turns if _is_empty(messages[k])])
        if not self.allow_control_tokens:
            _raise(_control_tokens_in(messages, tools or (), self.encoder.pattern))
        messages = self.probes.fitted(prepared(messages), tools)
        texts = self._texts(messages, turns, tools)
        starts = [0, *(k + 1 for k in turns)]
        _raise(f for start, k in zip(starts, turns, strict=False) for f in self.probes.lost(messages, start, k, tools))
        found = [_or_error(self._cut, messages, k, tools, *both) for k, both in zip(turns, texts, strict=True)]
        _raise(fault for error in found if isinstance(error, SupervisionError) for fault in error.faults)
        return found

    def _texts(self, messages: Sequence[dict], turns: Sequence[int], tools: Sequence[dict] | None) -> list[tuple[str, str]]:
        """Of each turn the served prompt, and the conversation up to that turn."""
        try:
            found = self.template.both(messages, turns, tools)
        except Exception:  # jinja's errors, and whatever a template's own filters raise: turn by turn, to name the one
            return [self._text(messages, k, tools) for k in turns]
        if turns:
            self.template.compare(found[-1][0], messages[: turns[-1]], tools)
        return found

    def _text(self, messages: Sequence[dict], k: int, tools: Sequence[dict] | None) -> tuple[str, str]:
        try:
            return self.template.render(messages[:k], tools, add_generation_prompt=True), self.template.render(messages[: k + 1], tools)
        except Exception as error:
            raise SupervisionError(f"message {k}: the chat template refuses the conversation: {error}") from error

    def _cut(self, messages: Sequence[dict], k: int, tools: Sequence[dict] | None, prompt: str, whole: str) -> Rendered:
        """The turn between the served prompt and what follows its stop token."""
        if not whole.startswith(prompt):
            kind = _kind(messages[k], tools)
            if kind not in self.mends:  # many renderings, and a whole file may need the same
                self.mends[kind] = list(find_mends(self.template, messages, k, tools))
            raise SupervisionError(f"message {k}: {difference(prompt, whole, self.mends[kind])}")
        rendered = whole[len(prompt) :]
        closing = self._closing(messages, k, tools)
        completion = rendered[: len(rendered) - len(closing.rest)] + closing.appended if closing else ""
        if not closing or not rendered.endswith(closing.rest) or not completion.endswith(self.encoder.controls):
            raise SupervisionError(
                f"message {k}: no control token ends the turn, which reads ...{rendered[-40:]!r}; the model would never stop. "
                "Use a template that closes its turns, or name the token with `stop_token`"
            )
        return Rendered(prompt, completion, k, float(messages[k].get("weight", 1)))

    def _closing(self, messages: Sequence[dict], k: int, tools: Sequence[dict] | None) -> Closing | None:
        kind = _kind(messages[k], tools)
        if kind not in self.closings:
            found = find_closing(lambda probe: self.template.render(probe, tools), messages, k, self.encoder.pattern)
            if found is None:
                return None  # perhaps this conversation's alone, so the next one is asked again
            self.closings[kind] = found
        return self.closings[kind]


def _kind(message: dict, tools: Sequence[dict] | None) -> tuple[bool, ...]:
    """What a template's treatment of a turn is taken to depend on: what kinds of text the turn has."""
    return (*(bool(message.get(key)) for key in ("tool_calls", *SPOKEN)), bool(tools))


def _raise(faults: Iterable[str]) -> None:
    """All faults as one error, each once; nothing where there are none."""
    if found := dict.fromkeys(faults):
        raise SupervisionError(*found)


def _is_empty(message: dict) -> bool:
    return not message.get("tool_calls") and not _text(message.get("content") or "").strip()


def _or_error(work: Callable[..., Any], *args: Any) -> Any:
    """What `work` gives, or the `SupervisionError` it raises."""
    try:
        return work(*args)
    except SupervisionError as error:
        return error


def _control_tokens_in(messages: Sequence[dict], tools: Sequence[dict], pattern: re.Pattern[str]) -> Iterator[str]:
    """A control token written in a text becomes the token itself: a user's words, or a call's argument, could end the turn."""
    texts = [(f"message {i}: its {field}", _text(m[field])) for i, m in enumerate(messages) for field in SPOKEN if m.get(field)]
    texts += [(f"message {i}: its tool call", str(m["tool_calls"])) for i, m in enumerate(messages) if m.get("tool_calls")]
    texts += [("tools: a schema", str(tool)) for tool in tools]
    if not pattern.search("\n".join(text for _, text in texts)):
        return
    for where, text in texts:
        if found := pattern.search(text):
            mended = "escape it in `conversation`, or set `allow_control_tokens` where it is meant"
            yield f"{where} holds the control token {found[0]}; {mended}"


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(str(part.get("text", "")) for part in content)
