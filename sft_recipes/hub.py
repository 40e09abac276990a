"""What the Hub refused, or why it could not be reached, as one line for a person: for models, tokenizers and datasets alike.

`huggingface_hub` itself tries again: six times in all after 408, 429 (it waits as long as `Retry-After` says) and 5xx, and a download
that breaks off goes on where it was (huggingface_hub/utils/_http.py, file_download.py). So nothing is tried again here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .public import public

CACHED = "HF_HUB_OFFLINE=1 takes what is in the cache"
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


def trouble(error: BaseException, name: str, kind: str = "model") -> str:
    """The line that tells a person what to do; empty where the Hub has no part in it.

    It quotes nothing of the error's text, in which an address or a header may stand.

    Args:
        error: as upstream raised it; transformers and `datasets` wrap the Hub's own, which are looked for among its causes.
        name: the Hub id that was asked for.
        kind: `model` or `dataset`.
    """
    from huggingface_hub import constants, errors

    chain = list(_causes(error))
    page = f"{public(constants.ENDPOINT)}/{'datasets/' if kind == 'dataset' else ''}{name}"
    what = f"{kind} '{name}'"
    if any(isinstance(e, errors.GatedRepoError) for e in chain) or _says(chain, "is a gated dataset"):
        return f"{what} is gated: accept its licence at {page}, then {LOGIN}"
    if any(isinstance(e, errors.RevisionNotFoundError) for e in chain):
        return f"{what}: no such revision; {page}/commits shows those that there are"
    if any(isinstance(e, errors.RepositoryNotFoundError) for e in chain) or _says(chain, "doesn't exist on the Hub"):
        return f"{what} is neither a folder here nor on the Hub at {page}; check its name, and if it is private, {LOGIN}"
    if status := next((e.response.status_code for e in chain if isinstance(e, errors.HfHubHTTPError)), 0):
        return f"{what}: {_refused(status)}"
    return f"{what}: {unreached}" if (unreached := _unreached(chain)) else ""


def _refused(status: int) -> str:
    """What an HTTP status of the Hub means, and what helps."""
    if status == 401:
        return f"the Hub does not accept your token (401): it is wrong or has expired; {LOGIN} to another"
    if status == 403:
        return "the Hub forbids it (403): your token may not read this; give it that right in the Hub's settings, or use another"
    if status == 429:
        return f"the Hub answers 429, too many requests, and still does after waiting; try again in some minutes. {CACHED}"
    if status >= 500:
        return f"the Hub is in trouble (it answers {status}), and still is after several tries; try again later. {CACHED}"
    return f"the Hub answers {status}; check the name, and HF_ENDPOINT if it is set"


def _unreached(chain: list[BaseException]) -> str:
    """Why no answer came, or not all of it; empty where that is not what happened."""
    from huggingface_hub import constants

    kinds = {parent.__name__ for e in chain for parent in type(e).__mro__}
    if kinds & {"RemoteProtocolError", "ReadError", "WriteError"} or _says(chain, "Consistency check failed"):
        return "the connection to the Hub broke off in the middle; the same command goes on where it was"
    missed = bool(kinds & {"TransportError", "ConnectionError", "TimeoutError", "LocalEntryNotFoundError"})
    if missed and constants.HF_HUB_OFFLINE:
        return "it is not in the cache, and HF_HUB_OFFLINE is set; unset it, or fetch it with `hf download` first"
    if missed:
        return f"the Hub cannot be reached at {public(constants.ENDPOINT)}; check the network, the proxy, and HF_ENDPOINT. {CACHED}"
    return ""


def _says(chain: list[BaseException], text: str) -> bool:
    """Whether upstream's own words hold a text, where it has dropped the cause."""
    return any(text.lower() in str(e).lower() for e in chain)


def _causes(error: Any) -> Iterator[BaseException]:
    """An error, what caused it, what caused that, each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
