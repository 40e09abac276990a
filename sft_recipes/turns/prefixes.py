"""All prefixes of a conversation from one rendering, where that can be proven.

To cut a conversation of n turns into served prompts and turns takes 2n renderings, of ever longer prefixes. But a template
is a program that reads messages and writes text: what it wrote before it first looked at message k, it also writes when
message k is not there. So the conversation is rendered once, as a list that notes which message has been looked at, and the
text is cut where the main loop goes on to the next message. What a shorter conversation writes after that point is the
template's tail, and it is known where the tail reads nothing that the loop has changed.

    {% for message in messages %}...{% endfor %}{% if add_generation_prompt %}<start_of_turn>model{% endif %}
                                      the loop  |  the tail

A template's source is read first (`separable`), and left alone where its tail is not constant or its loop is not plain. Where a
conversation makes the template look ahead (Qwen looks whether another tool result follows), that prefix is left out, and
rendered by itself.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jinja2 import nodes

ASK = "add_generation_prompt"
STEPS = {"root", "__next__"}  # the functions of jinja that go on to the next message: the loop's own code, or its `loop`


class Watched:
    """Messages that note how far they have been read: by the loop that goes through them, or otherwise.

    Attributes:
        seen: how many messages from the start have been looked at.
        steps: the values of `seen` that were reached by the loop's own step, from exactly one less.
    """

    def __init__(self, messages: Sequence[dict], log: Watched | None = None, start: int = 0):
        self.messages, self.log, self.start = messages, self if log is None else log, start
        self.seen, self.steps = 0, set()  # type: ignore[var-annotated]

    def _look(self, count: int, step: bool = False) -> None:
        if count > self.log.seen:
            if step and count == self.log.seen + 1:
                self.log.steps.add(count)
            self.log.seen = count

    def __iter__(self) -> Iterator[dict]:
        for i in range(self.start, len(self.messages)):
            # whoever else asks only looks: loop.last and loop.nextitem peek through the same iterator
            self._look(i + 1, step=sys._getframe(1).f_code.co_name in STEPS)
            yield self.messages[i]
        self._look(len(self.messages) + 1)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice) and at.stop is None and at.step is None and type(at.start) is int and at.start >= 0:
            return Watched(self.messages, self.log, self.start + at.start)
        if isinstance(at, int) and at >= 0:
            self._look(self.start + at + 1)
        else:
            self._look(len(self.messages) + 1)
        return self.messages[self.start :][at]

    def __len__(self) -> int:
        self._look(len(self.messages) + 1)
        return len(self.messages) - self.start


class Prefixes:
    """A template whose prefixes can be read from one rendering.

    Args:
        template: compiled by transformers, from a source of which `separable` is true.
        given: what the template is rendered with beside messages, tools and `add_generation_prompt`.
    """

    def __init__(self, template: Any, given: dict[str, Any]):
        self.template, self.given = template, given
        self._tails: dict[bool, str] = {}

    def both(self, messages: Sequence[dict], turns: Sequence[int], tools: Sequence[dict] | None) -> list[tuple[str, str]]:
        """For each k of `turns`, `messages[:k]` with the generation prompt, and `messages[:k + 1]` without.

        It may raise whatever the template raises.
        """
        body, whole = self._prefixes(messages[: turns[-1] + 1], tools)
        found = []
        for k in turns:
            following = whole if k == turns[-1] else self._closed(body, messages, k + 1, tools, False)
            found.append((self._closed(body, messages, k, tools, True), following))
        return found

    def _closed(self, body: dict[int, str], messages: Sequence[dict], n: int, tools: Sequence[dict] | None, ask: bool) -> str:
        """`messages[:n]` with its tail; the first one is rendered to learn the tail."""
        if n in body and ask in self._tails:
            return body[n] + self._tails[ask]
        text = self.template.render(messages=messages[:n], tools=tools, **{ASK: ask}, **self.given)
        if n in body and text.startswith(body[n]):
            self._tails[ask] = text[len(body[n]) :]
        return text

    def _prefixes(self, messages: Sequence[dict], tools: Sequence[dict] | None) -> tuple[dict[int, str], str]:
        """What `messages[:n]` writes before the tail, for each n where that is known; and the whole text."""
        watched = Watched(messages)
        texts, seen = [], []
        for text in self.template.generate(messages=watched, tools=tools, **{ASK: False}, **self.given):
            texts.append(text)
            seen.append(watched.seen)  # when this text had been written
        ends = {n: bisect_right(seen, n) for n in range(1, len(messages)) if n + 1 in watched.steps}
        return {n: "".join(texts[:end]) for n, end in ends.items()}, "".join(texts)


def separable(root: nodes.Template) -> bool:
    """Whether a template is a plain loop over the messages and a constant tail.

    The loop stands at the top and is the only one over messages. Messages are otherwise only named, counted, indexed or
    sliced, which `Watched` sees. The tail reads nothing that the template assigns, and only the tail reads
    `add_generation_prompt`.
    """
    carriers = _carriers(root)
    loops = [loop for loop in root.find_all(nodes.For) if _names(loop.iter) & carriers]
    if len(loops) != 1 or loops[0] not in root.body or loops[0].else_ or loops[0].recursive or loops[0].test:
        return False
    at = root.body.index(loops[0]) + 1
    assigned = {n.name for n in root.find_all(nodes.Name) if n.ctx == "store"} | {n.name for n in root.find_all(nodes.NSRef)}
    tail_reads = {name for node in root.body[at:] for name in _names(node)}
    head_reads = {name for node in root.body[:at] for name in _names(node)}
    calls = any(True for node in root.body[at:] for _ in node.find_all((nodes.Call, nodes.For, nodes.Macro)))
    constant = not calls and not tail_reads & (assigned | carriers | {"tools"}) and ASK not in head_reads
    return constant and _only_seen_uses(root, carriers)


def _names(node: nodes.Node) -> set[str]:
    own = {node.name} if isinstance(node, nodes.Name) else set()
    return own | {name.name for name in node.find_all(nodes.Name)}


def _carriers(root: nodes.Template) -> set[str]:
    """The names that may stand for the messages: `messages`, and what is assigned from them, whole or sliced."""
    carriers = {"messages"}
    assigned = [(node.target.name, node.node) for node in root.find_all(nodes.Assign) if isinstance(node.target, nodes.Name)]
    for _ in assigned:  # an alias of an alias needs another round
        carriers |= {name for name, value in assigned if _carries(value, carriers)}
    return carriers


def _carries(node: nodes.Node, carriers: set[str]) -> bool:
    """Whether an expression is the messages, or a slice of them."""
    while isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        node = node.node
    return isinstance(node, nodes.Name) and node.name in carriers and node.ctx == "load"


def _only_seen_uses(root: nodes.Template, carriers: set[str]) -> bool:
    """Whether messages go nowhere else, where they would be printed, compared or gone through; nor does `loop`, which holds them."""
    plain: list[Any] = [loop.iter for loop in root.find_all(nodes.For)] + [item.node for item in root.find_all(nodes.Getitem)]
    plain += [assign.node for assign in root.find_all(nodes.Assign) if isinstance(assign.target, nodes.Name)]
    plain += [sized.node for sized in root.find_all(nodes.Filter) if sized.name == "length"]
    plain += [test.node for test in root.find_all(nodes.Test) if test.name == "defined"]
    used = [node for node in root.find_all((nodes.Name, nodes.Getitem)) if _carries(node, carriers)]
    loops = [name for name in root.find_all(nodes.Name) if name.name == "loop"]
    return _among(used, plain) and _among(loops, [item.node for item in root.find_all(nodes.Getattr)])


def _among(used: Iterable[nodes.Node], fine: Iterable[nodes.Node]) -> bool:
    """Whether these very nodes are among the others (equal ones stand elsewhere too)."""
    places = {id(node) for node in fine}
    return all(id(node) in places for node in used)
