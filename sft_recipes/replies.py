"""A generated turn to an assistant message, as a server reads it: by the tokenizer's response template.

The chat template is the only renderer and the response template the only parser, in evaluation, in chat and where the model
is served. A tokenizer without one gives the text as content.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any


def parse(
    tokenizer: Any,
    prompt_ids: Sequence[int],
    reply_ids: Sequence[int],
    tools: Sequence[dict] | None = None,
    stop_ids: Collection[int] = (),
) -> dict[str, Any]:
    """The message that a reply is.

    Args:
        tokenizer: perhaps with a `response_template`.
        prompt_ids: the served context: a template may begin the message that the reply goes on with.
        reply_ids: what was generated, up to and including its stop token where it stopped.
        tools: schemas on offer; transformers casts a call's arguments by them, as it does when it serves.
        stop_ids: the tokens a turn ends in; they are no content.

    Returns:
        `role`, `content` and, where it calls something, `tool_calls` with arguments as mappings; whatever else the response
        template names. A reply that it cannot read is content as a whole.
    """
    stopped = bool(reply_ids) and reply_ids[-1] in stop_ids
    text = tokenizer.decode(list(reply_ids))
    content = tokenizer.decode(list(reply_ids[:-1])) if stopped else text
    plain = {"role": "assistant", "content": content}
    if getattr(tokenizer, "response_template", None) is None:
        return plain
    try:
        message = tokenizer.parse_response(text, prefix=tokenizer.decode(list(prompt_ids)), tools=list(tools or []))
    except Exception:  # what a model says is never a fault: a number too long to read, brackets too deep, a template's own errors
        return plain
    said = message.get("content") or ""
    return {**plain, **message, "content": said.removesuffix(tokenizer.decode([reply_ids[-1]])) if stopped else said}


class Listener:
    """A reply read while it is generated: what can be said of it so far, piece by piece.

    Args:
        tokenizer, prompt_ids, tools, stop_ids: as for `parse`.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt_ids: Sequence[int],
        tools: Sequence[dict] | None = None,
        stop_ids: Collection[int] = (),
    ):
        self.tokenizer, self.stop_ids = tokenizer, stop_ids
        self.ids: list[int] = []
        self.heard = ""
        self.parser: Any = None
        if getattr(tokenizer, "response_template", None) is not None:
            self.parser = tokenizer.get_response_parser(prefix=tokenizer.decode(list(prompt_ids)), tools=list(tools or []))

    def hear(self, token: int) -> Iterator[str | dict[str, Any]]:
        """Takes the next token; gives content as text, and each call as a mapping with `name` and `arguments` once it is whole."""
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids)
        if text.endswith("\ufffd"):
            return  # half a letter
        new, self.heard = text[len(self.heard) :], text
        if self.parser is not None:
            yield from self._read(lambda: self.parser.feed(new))
        elif token not in self.stop_ids:
            yield new

    def end(self) -> Iterator[str | dict[str, Any]]:
        """What was held back, because it could have become a call."""
        if self.parser is not None:
            yield from self._read(lambda: self.parser.finalize()[1])

    def _read(self, events: Callable[[], Iterable[dict]]) -> Iterator[str | dict[str, Any]]:
        try:
            found = list(events())
        except Exception:  # as in `parse`; from here on the text as it comes
            self.parser, found = None, []
        for event in found:
            if event["type"] == "region_chunk" and event["field"] == "content":
                yield event["text"]
            elif event["type"] == "region_close" and event["field"] == "tool_calls":
                calls = event["value"] if isinstance(event["value"], list) else [event["value"]]
                functions = [call.get("function", call) for call in calls]
                yield from ({"name": f.get("name"), "arguments": f.get("arguments")} for f in functions)
