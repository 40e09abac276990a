"""What can be read off a deployed folder without computing with it: each finding names the file, what is wrong, and what was trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from ..recipe import RecipeError
from ..turns.rendering import prepared
from ..weights.identity import layout
from ..weights.templates import fingerprint
from .folder import declared_stops
from .record import Record

SHOWN = 3  # names of one kind in a message


def checkpoint(folder: Path, record: Record) -> list[str]:
    """Every shard is whole, and the tensors have the names and shapes of the base's."""
    try:
        found = layout(str(folder))
    except RecipeError as error:
        return error.faults
    if not found:
        return [f"{folder}: no model.safetensors"]
    if record.checkpoint is None:
        return []
    expected = {name: tuple(shape) for name, shape in record.checkpoint.items()}
    missing = [name for name in expected.keys() - found.keys() if not _may_lack(name, record)]
    surplus = [name for name in found.keys() - expected.keys() if not _is_head(name)]
    shaped = [f"{name} {found[name]}, not {expected[name]}" for name in expected.keys() & found.keys() if found[name] != expected[name]]
    said = (("lacks tensors of the base", missing), ("has tensors the base has not", surplus), ("has other shapes", shaped))
    return [f"model.safetensors: {what}: {_some(names)}" for what, names in said if names]


def _may_lack(name: str, record: Record) -> bool:
    """A tied head is stored once, and what the class does not load cannot be saved."""
    return (record.tied and _is_head(name)) or any(re.search(pattern, name) for pattern in record.not_loaded)


def _is_head(name: str) -> bool:
    """A head may be stored beside the embedding it is tied to, or not; whether it is tied is another check's matter."""
    return re.search(r"(^|\.)lm_head\.weight$|^(output|embed_out)\.weight$", name) is not None


def _some(names: list[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")


def stops(config: GenerationConfig, pad_id: int | None, tokenizer: Any, record: Record) -> list[str]:
    """Generation halts at every stop token found in training, and not at padding."""
    declared = declared_stops(config)
    where = "generation_config.json: eos_token_id"
    lacking = [repr(tokenizer.decode([i])) for i in record.stop_ids if i not in declared]
    found = [f"{where} {declared} lacks {', '.join(lacking)}, at which turns end in training"] if lacking else []
    if pad_id is not None and pad_id in declared and pad_id not in record.stop_ids:
        found.append(f"{where} {declared} holds the pad token {tokenizer.decode([pad_id])!r}")
    return found


def template(tokenizer: Any, record: Record) -> list[str]:
    """The chat template is the one trained with, byte for byte, and gives the ids that were trained on."""
    text = tokenizer.chat_template
    if not text:
        return ["chat_template.jinja: missing; a server would not know how to write a prompt"]
    found = []
    if fingerprint(text) != record.template:
        found.append(f"chat_template.jinja: not the one trained with: SHA-256 {fingerprint(text)[:12]}, trained {record.template[:12]}")
    if getattr(tokenizer, "response_template", None) != record.response_template:
        found.append("tokenizer_config.json: response_template: not the one replies were read back with in training")
    different = [one for one in record.served if _ids(tokenizer, one, record) != one["ids"]]
    if different:
        of = f"{len(different)} of {len(record.served)} training prompts"
        found.append(f"tokenizer: apply_chat_template gives other ids than were trained on for {of}, first {different[0]['source']}")
    return found


def _ids(tokenizer: Any, one: dict[str, Any], record: Record) -> list[int] | None:
    options = dict(add_generation_prompt=True, tokenize=True, return_dict=False, **record.template_kwargs)
    try:
        return tokenizer.apply_chat_template(prepared(one["messages"]), tools=one["tools"], **options)
    except Exception:  # jinja's errors, and whatever an edited template raises
        return None
