"""A tokenizer's chat template, compiled once and rendered many times.

`apply_chat_template` prepares its inputs anew for each rendering, which costs as much as the rendering. A conversation of
several turns is rendered twice a turn, so here its messages are prepared once, and transformers' own compiled template is
called with what transformers would give it. That the texts are the same is a test's business for every template, and one
text in a while is compared while it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .prefixes import Prefixes, separable

REASONING = ("reasoning_content", "thinking", "reasoning")  # one text under three names, the first of them the standard
SAMPLED = 128  # one rendering in so many is compared with `apply_chat_template`'s


class ChatTemplate:
    """What `tokenizer.apply_chat_template(..., tokenize=False)` renders, at half the cost.

    Args:
        tokenizer: with a chat template.
        **kwargs: `template_kwargs`, passed to the template.
    """

    def __init__(self, tokenizer: Any, **kwargs: Any):
        self.tokenizer, self.kwargs = tokenizer, kwargs
        self.given = {**tokenizer.special_tokens_map, "documents": None, **kwargs}
        self._compiled: dict[bool, Any] = {}
        self._prefixes: dict[bool, Prefixes] = {}
        self._count = 0

    def render(self, messages: Sequence[dict], tools: Sequence[dict] | None = None, add_generation_prompt: bool = False) -> str:
        """The text of `messages`, which are as `prepared` gives them; it may raise whatever the template raises."""
        if not messages:
            raise ValueError("no message comes before it, and an empty conversation cannot be served")
        return self._template(tools).render(messages=messages, tools=tools, add_generation_prompt=add_generation_prompt, **self.given)

    def upstream(self, messages: Sequence[dict], tools: Sequence[dict] | None, add_generation_prompt: bool = False) -> str:
        """The same by `apply_chat_template`."""
        return self.tokenizer.apply_chat_template(
            list(messages), tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt, **self.kwargs
        )

    def both(self, messages: Sequence[dict], turns: Sequence[int], tools: Sequence[dict] | None = None) -> list[tuple[str, str]]:
        """For each turn k its served prompt, `messages[:k]` with the generation prompt, and `messages[:k + 1]`.

        It may raise whatever the template raises.
        """
        self._template(tools)
        stream = self._prefixes.get(tools is not None)
        if not stream or not turns or not turns[0]:
            return [(self.render(messages[:k], tools, add_generation_prompt=True), self.render(messages[: k + 1], tools)) for k in turns]
        return stream.both(messages, turns, tools)

    def compare(self, prompt: str, messages: Sequence[dict], tools: Sequence[dict] | None) -> None:
        """Hold one prompt in a while against `apply_chat_template`'s.

        Raises:
            RuntimeError: they differ; never seen, and it would be a defect here.
        """
        self._count += 1
        if self._count % SAMPLED == 1 and prompt != self.upstream(messages, tools, add_generation_prompt=True):
            raise RuntimeError(f"this prompt is not the one that apply_chat_template renders: ...{prompt[-200:]!r}")

    def _template(self, tools: Sequence[dict] | None) -> Any:
        if (given := tools is not None) not in self._compiled:
            from transformers.utils.chat_template_utils import _compile_jinja_template

            source = self.tokenizer.get_chat_template(tools=tools)
            compiled = self._compiled[given] = _compile_jinja_template(source)
            if separable(compiled.environment.parse(source)):
                self._prefixes[given] = Prefixes(compiled, self.given)
        return self._compiled[given]


def prepared(messages: Sequence[dict]) -> list[dict[str, Any]]:
    """Messages as transformers gives them to a template: without `None`, their reasoning under each name it goes by."""
    found = []
    for message in messages:
        if None in message.values():
            message = {key: value for key, value in message.items() if value is not None}
        thought = next((message[name] for name in REASONING if name in message), None)
        found.append(message if thought is None else {"thinking": thought, **message, "reasoning_content": thought})
    return found
