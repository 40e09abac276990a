"""Texts from the command line as the values of fields."""

from __future__ import annotations

import dataclasses
from argparse import ArgumentTypeError
from typing import Any

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from ..recipe import Recipe
from .configuration import RecipeConfig

OWN_TYPES = {f.name: str(f.type) for f in dataclasses.fields(Recipe)}
OWN_FIELDS = OWN_TYPES.keys() - {"config", "ablation", "tiny"}
CONFIG_FIELDS = {f.name for f in dataclasses.fields(RecipeConfig) if f.init} - OWN_FIELDS  # `packing` is ours


class _Parser(HfArgumentParser):
    def error(self, message: str):
        raise ValueError(message.partition(": ")[2] or message)


def typed(key: str, value: Any, faults: list[str]) -> Any:
    """A text as its field's type; a fault is noted, not raised."""
    if key == "packing":
        value = {"true": "auto", "false": "none"}.get(str(value).lower(), value)  # as upstream's users have it
    if not isinstance(value, str):
        return value
    try:
        if key in OWN_FIELDS:
            return _own_typed(key, value)
        return getattr(_Parser(RecipeConfig).parse_args([f"--{key}", value]), key)
    except (ValueError, ArgumentTypeError) as error:
        faults.append(f"{key}: {error}")
        return None


def _own_typed(key: str, value: str) -> Any:
    """A text as the type of a field of `Recipe`; what is no number and no truth value stays text."""
    if key == "held_out" and value.isdigit():
        return int(value)
    read = {"int": int, "float": float, "bool": string_to_bool}.get(OWN_TYPES[key].removesuffix(" | None"), str)
    return read(value)
