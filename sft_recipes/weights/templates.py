"""A chat template for a base model: found by name, made to fit the tokenizer, and asked which control tokens it writes.

Three are ours, in `chat_templates/`: `chatml`, `plain` for text without roles, and `gemma3_tools`, Gemma 3's with tools. The
others are read from the installed TRL or from a person's file. What the template will need of the tokenizer is seen by
rendering with it, so a token that only images or tools bring in (Gemma 3's `<start_of_image>`) is not asked for.

Beside a template may lie its `.response.json`: transformers' response template, by which a server reads a reply back. That of
`gemma3_tools` takes a line for a call when the whole of it is one, by a grammar of JSON: what only resembles a call is content.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from transformers.utils.chat_parsing import ResponseParser

from ..recipe import Recipe, RecipeError, unknown_name

CHOICE = "chatml, gemma, gemma3_tools, llama3, plain (text without roles), another of TRL's, or a .jinja file"
OURS = Path(__file__).parent / "chat_templates"
# `<|im_end|>`, Gemma 4's `<turn|>`, DeepSeek's with full-width bars, Gemma's `<end_of_turn>`; not `<think>`, which is text.
CONTROL = re.compile("<[|\uff5c][^<>\\s]+>|<[^<>\\s]+[|\uff5c]>|<(?:start|end)_of_[a-z]+>")


def chat_template(name: str) -> str:
    """A chat template's text, from a `.jinja` file or by name: ours (`chatml`, `plain`, ...) or one of TRL's (`gemma3`, `qwen3`, ...).

    Raises:
        RecipeError: neither a file nor a known name.
    """
    return _file(name).read_text(encoding="utf-8")


def fingerprint(template: str) -> str:
    """SHA-256 of a chat template, byte for byte."""
    return hashlib.sha256(template.encode()).hexdigest()


def response_template(name: str) -> dict[str, Any] | None:
    """What reads the replies to that chat template back, in transformers' declarative form; `None` where nothing lies beside it.

    Raises:
        RecipeError: the template is not there, or what lies beside it is no response template.
    """
    file = _file(name).with_suffix(".response.json")
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        ResponseParser(found, prefix="")
    except (OSError, ValueError) as error:
        raise RecipeError(f"{file}: not a response template as transformers reads it: {error}") from error
    return found


def _file(name: str) -> Path:
    if name.endswith((".jinja", ".j2")):
        if not Path(name).is_file():
            raise RecipeError(f"{name}: no such chat template file")
        return Path(name)
    known = _named()
    if name not in known:
        raise RecipeError(f"{unknown_name('chat_template', name, known)} It can be {CHOICE}")
    return known[name]


def _named() -> dict[str, Path]:
    """Ours and TRL's, which is found without importing it; its `_training` variants are the same templates, marked up."""
    spec = importlib.util.find_spec("trl")
    folder = Path(spec.origin).parent / "chat_templates"  # type: ignore[union-attr,arg-type]
    files = [*folder.glob("*.jinja"), *OURS.glob("*.jinja")]
    return {file.stem: file for file in files if not file.stem.endswith("_training")}


def fitted(recipe: Recipe, tokenizer: Any) -> str:
    """The recipe's template as this tokenizer needs it: with its BOS in front of ours, and its stop token where one is asked for.

    What is put in front is part of the template, so that it is deployed with the model and no server need know of it.

    Args:
        recipe: names a `chat_template`, perhaps a `stop_token`.
        tokenizer: the base model's.

    Raises:
        RecipeError: no such template, or a template that asks for a stop token and neither recipe nor tokenizer has one.
    """
    name = str(recipe.chat_template)
    text = chat_template(name)
    begins = _beginning(tokenizer, name) if name in ("chatml", "plain") else ""
    if not re.search(r"\bstop_token\b", text):
        return begins + text
    stop = recipe.stop_token or tokenizer.eos_token
    if stop is None:
        raise RecipeError(f"{recipe.model}: the tokenizer has no eos_token to end a turn of '{name}' with; name one with `stop_token`")
    return f"{{%- set stop_token = {stop!r} -%}}" + begins + text


def _beginning(tokenizer: Any, name: str) -> str:
    """What the tokenizer puts in front of plain text, as a template: its BOS, and the space some SentencePiece ones add.

    Without that space "Once" would be another token after a BOS the template writes than after one the tokenizer adds.
    """
    served = tokenizer("x")["input_ids"]
    if tokenizer.bos_token_id is None or served[:1] != [tokenizer.bos_token_id]:
        return ""
    written = [tokenizer(tokenizer.bos_token + text, add_special_tokens=False)["input_ids"] for text in ("x", " x")]
    space = "{{- '' if messages[0]['content'][:1] in ('', ' ') else ' ' -}}"
    return "{{- bos_token -}}" + (space if name == "plain" and served == written[1] != written[0] else "")


def control_tokens(recipe: Recipe, tokenizer: Any) -> list[str]:
    """The control tokens that the tokenizer's template writes around plain messages, and the recipe's stop token.

    Args:
        recipe: for its `stop_token` and `template_kwargs`.
        tokenizer: with its chat template.

    Raises:
        RecipeError: the template renders no conversation at all, or never writes the stop token.
    """
    name = recipe.chat_template or "the tokenizer's own"
    texts, refused = _renderings(tokenizer, recipe.template_kwargs)
    if not texts:
        raise RecipeError(f"chat_template {name} renders no conversation with the tokenizer of {recipe.model}: {refused}")
    found = [token for text in texts for token in CONTROL.findall(text)]
    if recipe.stop_token is None:
        return list(dict.fromkeys(found))
    if not any(recipe.stop_token in text for text in texts):
        raise RecipeError(
            f"stop_token '{recipe.stop_token}': chat_template {name} never writes it; in a file of yours, put {{{{ stop_token }}}} "
            "where an assistant message ends"
        )
    return list(dict.fromkeys([*found, recipe.stop_token]))


def _renderings(tokenizer: Any, template_kwargs: Any) -> tuple[list[str], str]:
    """Short conversations as text, with and without a system message; and why the last refused one was refused."""
    system, asked, said = ({"role": role, "content": "x"} for role in ("system", "user", "assistant"))
    texts, refused = [], ""
    for messages in ([system, asked, said], [asked, said], [asked, said, asked, said]):
        try:
            texts.append(tokenizer.apply_chat_template(messages, tokenize=False, **template_kwargs))
            texts.append(tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True, **template_kwargs))
        except Exception as error:  # jinja's errors, and whatever a template raises by itself (Gemma: no system role)
            refused = str(error)
    return texts, refused
