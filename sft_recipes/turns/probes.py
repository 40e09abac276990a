"""What a chat template takes and what it leaves out, learned by rendering a marker where a text would stand.

Templates differ in the form of content they read (text, or a list of parts) and of call arguments (a mapping, or JSON
text), and many leave out a field without a word: reasoning, calls, a name, a list of tools. Whoever trains on such a
rendering trains another conversation than the one in the file. Each question is asked of a template once per kind of
message; after that the answer costs a look in a table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from .rendering import REASONING

MARKER = "QZXMARKERXZQ"
# A part printed as it stands in memory instead of its text: [{'type': 'text', 'text': 'QZX
PRINTED = re.compile(r"""["']text["']: ?["']$""")
NO_TRACE = "the chat template leaves no trace of"

Messages = Sequence[dict[str, Any]]
Fit = Callable[[dict[str, Any]], dict[str, Any]]


class Probes:
    """A template's answers.

    Args:
        render: messages and tools to text, without the generation prompt; it may raise.
    """

    def __init__(self, render: Callable[[Messages, Sequence[dict] | None], str]):
        self.render = render
        self.fits: dict[Hashable, Fit] = {}
        self.shown: dict[Hashable, bool] = {}
        self.whole: set[Hashable] = set()  # kinds of messages that are known to show all they say

    def fitted(self, messages: Messages, tools: Sequence[dict] | None) -> Messages:
        """The conversation in the forms that the template reads: as it is, where that works."""
        key = (frozenset((m["role"], type(m.get("content")), "tool_calls" in m) for m in messages), bool(tools))
        if key not in self.fits:
            shown = [self._how_much_shows(fit, messages, tools) for fit in FITS]
            if max(shown) < 0:
                return messages  # refused in every form, for another reason
            self.fits[key] = FITS[shown.index(max(shown))]  # the first among equals
        fit = self.fits[key]
        return messages if fit is as_given else [fit(message) for message in messages]

    def _how_much_shows(self, fit: Fit, messages: Messages, tools: Sequence[dict] | None) -> int:
        """How many contents and calls show, each replaced by a marker; -1 where the template refuses."""
        try:
            pieces = self.render([fit(all_marked(message)) for message in messages], tools).split(MARKER)
        except Exception:  # jinja's errors, and whatever a template's own filters raise
            return -1
        return sum(not PRINTED.search(before) for before in pieces[:-1])

    def lost(self, messages: Messages, start: int, k: int, tools: Sequence[dict] | None) -> Iterator[str]:
        """What leaves no trace in the rendering of `messages[:k + 1]`: tools, and fields of the messages from `start` on.

        Only the turn `k` itself must show its reasoning: a template may drop that from the context, when served as here.
        """
        whole = messages[: k + 1]
        if tools and self._known(("tools", whole[0]["role"]), lambda: self.render(whole, tools) != self.render(whole, None)) is False:
            yield f"tools: {NO_TRACE} them; write them as text in `conversation`, or use a template with tools"
        for j in range(start, k + 1):
            kind = _kind(whole, j, j == k, tools)
            if kind in self.whole:
                continue
            asked = {field: self._known((kind, field), partial(self._shows, whole, j, field, tools)) for field in _fields(kind)}
            yield from (f"message {j}: {_loss(whole[j], *field)}" for field, shows in asked.items() if shows is False)
            if all(asked.values()):
                self.whole.add(kind)

    def _known(self, question: Hashable, ask: Callable[[], bool]) -> bool | None:
        """The answer to a question that is asked once; `None` where the template refuses the probe itself, so it can tell nothing."""
        if question not in self.shown:
            try:
                self.shown[question] = ask()
            except Exception:
                return None
        return self.shown[question]

    def _shows(self, messages: Messages, j: int, field: tuple[str, int], tools: Sequence[dict] | None) -> bool:
        return MARKER in self.render([*messages[:j], marked(messages[j], *field), *messages[j + 1 :]], tools)


class Kind(NamedTuple):
    """What a message says, and where: all that a template's treatment of it is taken to depend on."""

    role: str
    previous: str
    learned: bool
    tools: bool
    content: bool
    calls: int
    reasoning: bool
    name: bool


def _kind(messages: Messages, j: int, learned: bool, tools: Sequence[dict] | None) -> Kind:
    message = messages[j]
    content = message.get("content") or ""
    named = bool(message.get("name")) and not (message["role"] == "tool" and _is_a_link(messages[:j], message["name"]))
    says = bool(content if isinstance(content, list) else content.strip())
    calls, thinks = len(message.get("tool_calls") or ()), bool(message.get(REASONING[0]))
    return Kind(message["role"], messages[j - 1]["role"] if j else "", learned, bool(tools), says, calls, thinks, named)


def _fields(kind: Kind) -> list[tuple[str, int]]:
    """The fields that must show, each call of several by its number."""
    calls = [("tool_calls", index) for index in range(kind.calls)]
    named = {"content": kind.content, REASONING[0]: kind.reasoning and kind.learned, "name": kind.name}
    return calls + [(field, 0) for field, says in named.items() if says]


def _is_a_link(earlier: Messages, name: str) -> bool:
    """A tool result's name repeats that of the call it answers; a template may leave it to the order of the results."""
    return any(call.get("function", call).get("name") == name for m in earlier for call in m.get("tool_calls") or ())


def _loss(message: dict[str, Any], field: str, index: int) -> str:
    if field == "tool_calls":
        call = message["tool_calls"][index]
        name = call.get("function", call).get("name")
        return f"{NO_TRACE} its tool call to {name}; write calls as text in `conversation`, or use a template with tools"
    return f"{NO_TRACE} its `{field}`; drop it in the recipe's `conversation`, or use a template that renders it"


def marked(message: dict[str, Any], field: str, index: int = 0) -> dict[str, Any]:
    """The same message with the marker as its content (the last part of it), reasoning, name, or call's arguments."""
    if field == "content" and isinstance(message.get("content"), list):
        return {**message, "content": [*message["content"][:-1], {"type": "text", "text": MARKER}]}
    if field != "tool_calls":
        return {**message, **dict.fromkeys(REASONING if field in REASONING else (field,), MARKER)}
    calls = list(message["tool_calls"])
    function = calls[index].get("function", calls[index])
    arguments: Any = {"marker": MARKER}
    if isinstance(function.get("arguments"), str):
        arguments = json.dumps(arguments)
    function = {**function, "arguments": arguments}
    calls[index] = {**calls[index], "function": function} if "function" in calls[index] else function
    return {**message, "tool_calls": calls}


def all_marked(message: dict[str, Any]) -> dict[str, Any]:
    """The same message with the marker in place of every text it has: calls, content, reasoning."""
    for index in range(len(message.get("tool_calls") or ())):
        message = marked(message, "tool_calls", index)
    for field in ("content", REASONING[0]):
        message = marked(message, field) if message.get(field) else message
    return message


def as_given(message: dict[str, Any]) -> dict[str, Any]:
    """The message itself."""
    return message


def as_text(message: dict[str, Any]) -> dict[str, Any]:
    """Text parts joined by line breaks, as vLLM serves them to a template that reads text."""
    if not isinstance(message.get("content"), list):
        return message
    return {**message, "content": "\n".join(part.get("text", "") for part in message["content"])}


def as_parts(message: dict[str, Any]) -> dict[str, Any]:
    """Text as a list of one part."""
    text = message.get("content")
    return {**message, "content": [{"type": "text", "text": text}] if text else []} if isinstance(text, str) else message


def with_json_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """Text, and call arguments as JSON text (DeepSeek's templates concatenate them)."""
    if not message.get("tool_calls"):
        return as_text(message)
    calls = [{**call, "function": _json_arguments(call["function"])} if "function" in call else call for call in message["tool_calls"]]
    return {**as_text(message), "tool_calls": calls}


def _json_arguments(function: dict[str, Any]) -> dict[str, Any]:
    arguments = function.get("arguments")
    return function if isinstance(arguments, str) else {**function, "arguments": json.dumps(arguments, ensure_ascii=False)}


FITS: tuple[Fit, ...] = (as_given, as_text, as_parts, with_json_arguments)
