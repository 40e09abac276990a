"""Control tokens as one special token each, so that a turn's end is one token to say and no text can be mistaken for it.

A tokenizer that has them keeps its ids. Where one is missing, a slot that the model's makers reserved takes its name (the
embedding table does not grow); where there is no slot left, it is added behind the last id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AddedToken, AutoConfig, AutoTokenizer

# Llama 3, Gemma, and the BERT family's way.
RESERVED = re.compile(r"<\|reserved_special_token_(\d+)\|>|<unused(\d+)>|\[unused(\d+)\]")


def as_special(tokenizer: Any, wanted: Sequence[str], revision: str | None = None) -> Any:
    """The tokenizer with each of `wanted` as one special token.

    Args:
        tokenizer: a `transformers` tokenizer, loaded from a folder or the Hub.
        wanted: control tokens, as text.
        revision: that it was loaded from.

    Returns:
        the same tokenizer where it has them all, otherwise one that differs only in them: `save_pretrained` keeps it so.
    """
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    if special.issuperset(wanted):
        return tokenizer
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in wanted if token not in vocabulary]
    slots = reserved(vocabulary)[: len(missing)] if tokenizer.is_fast else []
    if tokenizer.is_fast:
        tokenizer = _edited(tokenizer, dict(zip(slots, missing, strict=False)), wanted, revision)
    added = set(tokenizer.added_tokens_encoder)
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in wanted if t not in added], special_tokens=True)
    return tokenizer


def reserved(vocabulary: Mapping[str, int]) -> list[str]:
    """The names of a vocabulary's reserved slots, in the order of their ids."""
    return sorted((token for token in vocabulary if RESERVED.fullmatch(token)), key=vocabulary.__getitem__)


def new_ids(base: Any, tokenizer: Any) -> list[int]:
    """The ids whose token is another one than in the base model's tokenizer, which the model has never seen in use."""
    tokens = sorted(tokenizer.added_tokens_decoder.items())
    return [i for i, token in tokens if base.convert_ids_to_tokens(i) != token.content]


def _edited(tokenizer: Any, renamed: Mapping[str, str], special: Sequence[str], revision: str | None) -> Any:
    """The tokenizer after a change to its saved files, the only public way to rename a token and keep its id."""
    # it decides on the class
    config = AutoConfig.from_pretrained(tokenizer.name_or_path, revision=revision, trust_remote_code=False)
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in (Path(folder, name) for name in ("tokenizer.json", "tokenizer_config.json")):
            text = file.read_text(encoding="utf-8")
            for old, new in renamed.items():
                text = text.replace(json.dumps(old), json.dumps(new, ensure_ascii=False))
            file.write_text(text, encoding="utf-8")
        _flag(Path(folder, "tokenizer.json"), set(special), set(renamed))
        edited = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
    edited.name_or_path = tokenizer.name_or_path
    return edited


def _flag(file: Path, special: set[str], gone: set[str]) -> None:
    """Mark added tokens as special; drop the merges that would make a token which is no more."""
    whole = json.loads(file.read_text(encoding="utf-8"))
    for token in whole["added_tokens"]:
        token["special"] = token["special"] or token["content"] in special
    if gone and "merges" in whole["model"]:
        whole["model"]["merges"] = [m for m in whole["model"]["merges"] if _made(m) not in gone]
    file.write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")


def _made(merge: str | list[str]) -> str:
    return merge.replace(" ", "") if isinstance(merge, str) else "".join(merge)
