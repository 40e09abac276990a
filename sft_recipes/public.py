"""What of a run may be read by others: everything but secrets."""

from __future__ import annotations

import re
from typing import Any

NAMED = re.compile(r"(.*_)?(secret|password|passwd|credentials|api_?key|access_key)|((hub|push_to_hub|hf|auth|access|api|bearer)_)?token")
WRITTEN = re.compile(r"\b(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|sk-[\w-]{30,})")
PASSWORD = re.compile(r"(://[^/\s:@]*:)[^/\s@]+@")  # in an address: https://name:password@host


def typed(words: list[str]) -> bool:
    """Whether a command line holds a secret, by the name of its field or by its form."""
    names = (word[2:].partition("=")[0].replace("-", "_").lower() for word in words if word.startswith("--"))
    return any(NAMED.fullmatch(name) for name in names) or public(words) != words


def public(value: Any) -> Any:
    """Plain data without the texts that are named or written like a secret (`hub_token`, `hf_...`); a `stop_token` is none."""
    if isinstance(value, dict):
        return {key: public(v) for key, v in value.items() if not (isinstance(v, str) and NAMED.fullmatch(str(key).lower()))}
    if isinstance(value, (list, tuple)):
        return [public(v) for v in value]
    return PASSWORD.sub(r"\1***@", WRITTEN.sub("***", value)) if isinstance(value, str) else value
