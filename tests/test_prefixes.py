"""Streaming: all served prompts from one rendering, and never another text than a rendering of each would give."""

import copy
import random
from types import SimpleNamespace

import pytest
from every_template import ORIGINALS
from test_rendering import CONVERSATIONS, LOOP, RESULT, SYSTEM, TOOLS, call, chat, one_by_one, outcome

from sft_recipes.turns.rendering import REASONING, prepared

STREAM = set(
    "cohere gemma gemma3 idefics3 lfm2 lfm2_v2 llama3 llama3_1 llama3_2 llava_next phi3 phi3_5 qwen2_5 qwen2_5_vl qwen3_instruct_2507 "
    "smolvlm".split()
)
TAKES_PARTS = {"idefics3", "llava_next", "smolvlm"}
LOOKS_AHEAD = {"qwen2_5", "qwen2_5_vl", "qwen3_instruct_2507"}


def test_which_templates_stream_is_known():
    for name in ORIGINALS:
        outcome(chat(name).both, [], [1])
    assert {name for name in ORIGINALS if chat(name)._prefixes} == STREAM


def someones(rng):
    """A random conversation: mostly in the order that templates expect, and not always."""
    parts = rng.random() < 0.2
    messages = [SYSTEM] * (rng.random() < 0.4)
    for i in range(rng.randint(2, 9)):
        role = rng.choice(["user", "assistant"]) if rng.random() < 0.1 else ("user", "assistant")[i % 2]
        text = rng.choice([f"m{i}", " ", f"\n{{{{ {i} }}}}", f"é🙂{i}\n", "<end_of_turn>"])
        message = {"role": role, "content": [{"type": "text", "text": text}] if parts else text}
        if role == "assistant" and rng.random() < 0.2:
            message[rng.choice(REASONING)] = f"hm{i}"
        calls = [call(j) for j in range(rng.choice([0, 0, 0, 0, 1, 1, 2]))] if role == "assistant" else []
        messages += [{**message, "tool_calls": calls} if calls else message, *(RESULT for _ in calls)]
    return prepared(messages)


def someones_conversations(count, seed=0):
    rng = random.Random(seed)
    return [(someones(rng), rng.choice([None, TOOLS])) for _ in range(count)]


@pytest.mark.parametrize("name", sorted(STREAM))
def test_cutting_gives_every_prefix_of_random_conversations_as_a_rendering_of_its_own_does(name):
    template, rendered = chat(name), 0
    for messages, tools in someones_conversations(150):
        turns = range(1, len(messages))
        expected = outcome(one_by_one, template.render, messages, turns, tools)
        assert outcome(template.both, messages, turns, tools) == expected
        rendered += expected != "raises"
    assert rendered > 5


@pytest.mark.parametrize("name", sorted(STREAM - LOOKS_AHEAD))
@pytest.mark.parametrize("kind", ["two turns", "system"])
def test_once_the_tail_is_known_a_conversation_is_rendered_once_also_behind_a_system_message(name, kind):
    messages = CONVERSATIONS["two turns" if name == "gemma" else kind]  # Gemma 1 takes no system message
    if name in TAKES_PARTS:
        messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    turns = [k for k, m in enumerate(messages) if m["role"] == "assistant"]
    expected = chat(name).both(messages, turns)
    stream = copy.copy(chat(name)._prefixes[False])
    stream.template = SimpleNamespace(generate=stream.template.generate)  # a second rendering fails
    assert stream.both(messages, turns, None) == expected


BODY, ASKS = "{{ m.role }}:{{ m.content }};", "{% if add_generation_prompt %}G{% endif %}"
ALIAS = "{% for m in x %}" + BODY + "{% endfor %}" + ASKS


def inside(text, loop="{% for m in messages %}"):
    return loop + text + BODY + text + "{% endfor %}" + ASKS


def maybe(item):
    return f"({item}|default({{}}))"


STREAMED = {
    **{f"loop.{name}": inside(f"{{{{ loop.{name} }}}}") for name in "index first last length revindex revindex0".split()},
    **{f"loop.{name}": inside(f"{{{{ {maybe(f'loop.{name}')}.role }}}}") for name in ("nextitem", "previtem")},
    "last decides": inside("{% if loop.last %}L{% else %}M{% endif %}"),
    "changed and cycle": inside("{{ loop.changed(m.role) }}{{ loop.cycle('a', 'b', 'c') }}"),
    "length in the loop": inside("{{ messages|length }}"),
    "length of a slice": inside("{{ messages[2:]|length }}"),
    "the last one": "{{ messages[-1].content }}" + inside("{{ messages[-1].role }}"),
    "the next one": inside(f"{{{{ {maybe('messages[loop.index0 + 1]')}.role }}}}{{{{ {maybe('messages[loop.index]')}.content }}}}"),
    "the one before": inside("{{ messages[loop.index0 - 1].role }}"),
    "one far ahead": inside(f"{{{{ {maybe('messages[3]')}.role }}}}{{{{ {maybe('messages[9]')}.role }}}}"),
    "one of a slice": inside(f"{{% if loop.index > 2 %}}{{{{ {maybe('messages[2:][loop.index0]')}.role }}}}{{% endif %}}"),
    "one of a slice ahead": inside(f"{{{{ {maybe('messages[1:][loop.index0 + 1]')}.role }}}}"),
    "look-ahead in some": inside(f"{{% if m.role == 'tool' and {maybe('messages[loop.index]')}.role != 'tool' %}}E{{% endif %}}"),
    **{f"slice {s}": f"{{% set x = messages[{s}] %}}" + ALIAS for s in (":", ":2", "0:2", "1:-1", "::2", "0::2")},
    "reversed slice": "{% for m in messages[::-1] %}" + BODY + "{% endfor %}" + ASKS,
    "slice from behind": "{% set x = messages[-2:] %}" + ALIAS,
    "slice from beyond": "{% set x = messages[3:] %}" + ALIAS,
    "slice of a slice": "{% set x = messages[1:][1:] %}" + ALIAS,
    "slice from nowhere": "{% set x = messages[nothing:] %}" + ALIAS,
    "slice from a fraction": "{% set x = messages[1.0:] %}" + ALIAS,
    "renamed itself": "{% set messages = messages[1:] %}" + LOOP,
    "alias of alias": "{% set y = messages %}{% set x = y[1:] %}" + ALIAS,
    "alias in a branch": "{% if messages[0].role == 'system' %}{% set x = messages[1:] %}{% else %}{% set x = messages %}{% endif %}"
    + ALIAS,
    "alias in the loop": inside("{% set x = messages %}{{ x[loop.index0].role }}{{ x|length }}"),
    "break": inside("{% if m.content == 'm2' %}{% break %}{% endif %}"),
    "break by look-ahead": inside(f"{{% if {maybe('messages[loop.index]')}.role == 'tool' %}}{{% break %}}{{% endif %}}"),
    "continue": inside("{% if m.role == 'tool' %}{% continue %}{% endif %}"),
    "generation tags": inside("{% generation %}{{ m.role }}{% if loop.last %}L{% endif %}{% endgeneration %}"),
    "a filter block": inside("{% filter upper %}{{ m.role }}{{ loop.last }}{% endfilter %}"),
    "a buffered block": inside(f"{{% set t %}}{{{{ {maybe('messages[loop.index]')}.content }}}}{{% endset %}}{{{{ t }}}}"),
    "a macro that looks": f"{{% macro f(i) %}}{{{{ {maybe('messages[i]')}.role }}}}{{% endmacro %}}" + inside("{{ f(loop.index) }}"),
    "a macro given the peeked": f"{{% macro f(m) %}}{{{{ {maybe('m')}.role }}}}{{% endmacro %}}" + inside("{{ f(loop.nextitem) }}"),
    "state in the loop": "{% set ns = namespace(n=0) %}" + inside("{% set ns.n = ns.n + 1 %}{{ ns.n }}"),
    "a tail of its own": LOOP + "{{ eos_token }}{% filter upper %}x{{ nothing }}{% endfilter %}",
    "messages defined": "{% if messages is defined %}" + "D{% endif %}" + LOOP,
}
REFUSED = {"slice from nowhere", "slice from a fraction"}
KEPT_WHOLE = {
    "recursive": "{% for m in messages recursive %}" + BODY + "{% endfor %}" + ASKS,
    "recursing": "{% for m in messages recursive %}" + BODY + "{{ loop([]) }}{% endfor %}" + ASKS,
    "for-else": "{% for m in messages %}" + BODY + "{% else %}E{% endfor %}" + ASKS,
    "for-if": "{% for m in messages if m.role != 'tool' %}" + BODY + "{{ loop.last }}{% endfor %}" + ASKS,
    "two loops": LOOP + LOOP,
    "a nested loop": inside("{% for o in messages %}{{ o.role }}{% endfor %}"),
    "in a block": "{% filter upper %}" + LOOP + "{% endfilter %}",
    "in a branch": "{% if true %}" + LOOP + "{% endif %}",
    "asked in the loop": inside("{% if loop.last and add_generation_prompt %}L{% endif %}"),
    "asked before": ASKS + LOOP,
    "tail of state": "{% set ns = namespace(n=0) %}" + inside("{% set ns.n = ns.n + 1 %}") + "{{ ns.n }}",
    "tail of messages": LOOP + f"{{{{ messages[0].content }}}}{{{{ {maybe('messages[1]')}.content }}}}",
    "tail of an alias": "{% set x = messages %}" + ALIAS + "{{ x[-1].role }}",
    "tail of a macro": "{% macro f() %}{{ messages[-1].role }}{% endmacro %}" + LOOP + "{{ f() }}",
    "tail of the tools": LOOP + "{{ tools }}",
    "a macro given messages": "{% macro f(x) %}{{ x[-1].role }}{% for m in x %}{{ m.role }}{% endfor %}{% endmacro %}{{ f(messages) }}"
    + LOOP,
    "a macro given a slice": "{% macro f(x) %}{% for m in x %}{{ m.role }}{% endfor %}{% endmacro %}{{ f(messages[1:]) }}" + LOOP,
    "a macro given the loop": "{% macro f(l) %}{{ l|list|length }}{% endmacro %}" + inside("{{ f(loop) }}{{ loop.index }}"),
    "the loop gone through": inside("{% for x in loop %}B{% endfor %}C{{ loop.index }}"),
    "the loop renamed": inside("{% set x = loop %}{% for y in x %}B{% endfor %}{{ loop.index }}"),
    "a namespace": "{% set ns = namespace(m=messages) %}{% for m in ns.m %}" + BODY + "{% endfor %}" + ASKS,
    "a namespace's item": "{% set ns = namespace() %}{% set ns.m = messages %}{{ ns['m']|tojson }}" + LOOP,
    "a list of it": "{% for x in [messages] %}" + ALIAS + "{% endfor %}",
    "one of two": "{% set x = messages if tools else messages[1:] %}" + ALIAS,
    "unpacked": "{% set x, y = messages, messages[1:] %}" + ALIAS + "{{ y|length }}",
    "with": "{% with x = messages[0:] %}{{ x|map(attribute='role')|join }}{% endwith %}" + LOOP,
    "iterable": "{{ messages is iterable }}{{ messages is sequence }}{{ messages is mapping }}" + LOOP,
    "truth": "{% if messages %}T{% endif %}" + LOOP,
    **{f"{x} compared": f"{{{{ {x} == [] }}}}{{{{ messages[0] in {x} }}}}" + LOOP for x in ("messages", "messages[1:]")},
    **{f"{x} printed": f"{{{{ {x} }}}}" + LOOP for x in ("messages", "messages[0:]", "messages[1:][1:]", "loop")},
    **{f"filter {f}": f"{{{{ messages|{f} }}}}" + LOOP for f in ("last", "tojson", "list", "count", "map(attribute='role')|join")},
    **{f"slice, {f}": f"{{{{ messages[0:]|{f} }}}}" + LOOP for f in ("last", "tojson", "selectattr('role', 'eq', 'user')|list|length")},
    **{f"loop over {f}": f"{{% for m in {f} %}}" + BODY + "{% endfor %}" + ASKS for f in ("messages|reverse", "messages[0:]|reverse")},
    "batches": "{% for b in messages[0:]|batch(2) %}[{% for m in b %}" + BODY + "{% endfor %}]{% endfor %}" + ASKS,
    "mapped": "{% for c in messages[0:]|map(attribute='content') %}{{ c }};{% endfor %}" + ASKS,
    "added to": "{% for m in messages[0:] + [] %}" + BODY + "{% endfor %}" + ASKS,
}


@pytest.mark.parametrize("name", [*STREAMED, *KEPT_WHOLE])
def test_a_template_that_looks_where_it_should_not_still_gives_the_plain_renderings(name):
    template, rendered = chat({**STREAMED, **KEPT_WHOLE}[name]), 0
    for messages, tools in someones_conversations(25, seed=1):
        for turns in (range(1, len(messages)), [2], [1, len(messages) - 1]):
            expected = outcome(one_by_one, template.render, messages, turns, tools)
            assert outcome(template.both, messages, turns, tools) == expected
            rendered += expected != "raises"
    assert bool(template._prefixes) == (name in STREAMED) and (rendered > 30) == (name not in REFUSED)
