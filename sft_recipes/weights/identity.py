"""Which checkpoint this is: a hash of names, types, shapes and a little of each tensor, quick at any size.

An adapter means something on the weights it was trained on and nowhere else, and a model's name does not say which these are: a
branch of the Hub moves, a folder is written again. So the hash of the base lies beside every adapter, in `base.json`, and is held
against what is there when the adapter is merged or trained on. Only headers and samples are read, from the disk, never the network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from ..recipe import Recipe, RecipeError

INDEX = "model.safetensors.index.json"
SINGLE = ("model.safetensors", "adapter_model.safetensors")
SAMPLE = 4096  # bytes at either end of a tensor; the last rows of a table are where new tokens are
FILE = "base.json"
COMPUTED = {"bnb_4bit_compute_dtype", "bnb_4bit_quant_storage"}  # how it is computed with, not what the weights are


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: its bytes are `start` to `end` of `file`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def identity(model: str, revision: str | None = None) -> dict[str, Any]:
    """What tells a safetensors checkpoint from all others, however it is cut into shards.

    Args:
        model: a folder (of a model or an adapter), or a Hub id whose files are in the cache.
        revision: of a Hub id: a branch, tag or commit.

    Returns:
        `model`; `revision`, the commit hash, `None` for a folder; `sha256` over name, dtype, shape and both ends of each tensor;
        `tensors`, how many there are. Where no checkpoint is on disk, `sha256` is `None`.

    Raises:
        RecipeError: a shard is cut short or missing.
    """
    digest, found = hashlib.sha256(), _tensors(model, revision)
    with ExitStack() as stack:
        opened = {file: stack.enter_context(file.open("rb")) for file in dict.fromkeys(t.file for t in found.values())}
        for name, tensor in sorted(found.items()):
            digest.update(json.dumps([name, tensor.dtype, tensor.shape]).encode())
            head = min(tensor.start + SAMPLE, tensor.end)
            for start, end in ((tensor.start, head), (max(head, tensor.end - SAMPLE), tensor.end)):
                opened[tensor.file].seek(start)
                digest.update(opened[tensor.file].read(end - start))
    return {
        "model": model,
        "revision": _commit(model, revision),
        "sha256": digest.hexdigest() if found else None,
        "tensors": len(found),
    }


def layout(model: str, revision: str | None = None) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a checkpoint, by its name; none where no checkpoint is on disk.

    Args:
        model, revision: as for `identity`.

    Raises:
        RecipeError: a shard is cut short or missing.
    """
    return {name: tensor.shape for name, tensor in sorted(_tensors(model, revision).items())}


def base_of(recipe: Recipe) -> dict[str, Any]:
    """The `identity` of a recipe's base model; one that is trained from scratch has no weights yet, and no `sha256`."""
    if recipe.from_scratch:
        return {"model": recipe.model, "revision": None, "sha256": None, "tensors": 0}
    return identity(recipe.model, recipe.revision)


def record(adapter: Path, recipe: Recipe) -> None:
    """Write `base.json` into an adapter's folder: what it was trained on, with `quantization` and `dtype`."""
    content = {**base_of(recipe), "quantization": _quantization(recipe), "dtype": recipe.dtype}
    (adapter / FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def refuse_another(adapter: Path, recipe: Recipe) -> None:
    """Hold a recipe's base against the one an adapter was trained on; an adapter without `base.json` is not judged.

    Raises:
        RecipeError: they are not the same, or not quantised alike; with what was, what is, and what to do.
    """
    if not (adapter / FILE).is_file():
        return
    trained, here = json.loads((adapter / FILE).read_text(encoding="utf-8")), base_of(recipe)
    if not _same(trained, here):
        raise RecipeError(f"{adapter} was trained on {_named(trained)}; {_named(here)} {_mended(trained, here)}")
    before, now = _stored(trained.get("quantization")), _stored(_quantization(recipe))
    known = before.keys() & now.keys() or before.keys() | now.keys()  # another version of the library has other fields
    if differing := [key for key in sorted(known) if before.get(key) != now.get(key)]:
        was, is_now = (", ".join(f"{key} {some.get(key)}" for key in differing) if some else "none" for some in (before, now))
        raise RecipeError(f"{adapter} was trained with quantization: {was}; here: {is_now}. Give the recipe the one it was trained with")


def _same(trained: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """By the weights where both are known, otherwise by name."""
    if trained["sha256"] and here["sha256"]:
        return trained["sha256"] == here["sha256"]
    commits = {some["revision"] for some in (trained, here)} - {None}
    return trained["model"] == here["model"] and len(commits) < 2


def _named(base: Mapping[str, Any]) -> str:
    return f"'{base['model']}'" + (f" at revision {base['revision']}" if base["revision"] else "")


def _mended(trained: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    if _named(trained) == _named(here):
        return "has other weights by now; name a copy of what it was with --model"
    revision = f" --revision {trained['revision']}" if trained["revision"] else ""
    return f"has other weights; name its own base with --model {trained['model']}{revision}"


def _quantization(recipe: Recipe) -> dict[str, Any] | None:
    """As plain data, the way JSON gives it back."""
    return None if recipe.quantization is None else json.loads(json.dumps(recipe.quantization.to_dict(), default=str))


def _stored(quantization: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (quantization or {}).items() if key not in COMPUTED}


def _tensors(model: str, revision: str | None) -> dict[str, Tensor]:
    return {name: tensor for file in _files(model, revision) for name, tensor in _header(file).items()}


def _files(model: str, revision: str | None) -> list[Path]:
    """The checkpoint's files in the order transformers looks for them; none where it is not, or not wholly, on disk."""
    if single := _on_disk(model, SINGLE[0], revision):
        return [single]
    index = _on_disk(model, INDEX, revision)
    if index is None:
        return [file for name in SINGLE[1:] if (file := _on_disk(model, name, revision))]
    shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    files = {name: _on_disk(model, name, revision) for name in shards}
    missing = [name for name, file in files.items() if file is None]
    if missing and Path(model).is_dir():
        raise RecipeError(f"{index} names {missing[0]}, which is not there; copy or download it again")
    return [] if missing else [file for file in files.values() if file]


def _on_disk(model: str, name: str, revision: str | None) -> Path | None:
    if Path(model).is_dir():
        return file if (file := Path(model, name)).is_file() else None
    try:
        found = try_to_load_from_cache(model, name, revision=revision)
    except ValueError:  # no name that the Hub could have
        return None
    return Path(found) if isinstance(found, str) else None


def _commit(model: str, revision: str | None) -> str | None:
    """The commit of a Hub id, which is the name of the cache's folder; the revision itself as long as nothing is there."""
    if Path(model).is_dir():
        return None
    found = _on_disk(model, "config.json", revision)
    return found.parent.name if found else revision


def _header(file: Path) -> dict[str, Tensor]:
    """Where each tensor of a safetensors file lies: a length in 8 bytes, JSON of that length, the data.

    Raises:
        RecipeError: the file is shorter than its header says.
    """
    there = file.stat().st_size
    with file.open("rb") as opened:
        data = 8 + int.from_bytes(opened.read(8), "little")
        entries = json.loads(opened.read(data - 8)) if data <= there else {}
    entries.pop("__metadata__", None)
    ends = [entry["data_offsets"][1] for entry in entries.values()]
    promised = data + max(ends, default=0)
    if there < promised:
        raise RecipeError(f"{file}: cut short: its header promises {promised:,} bytes, {there:,} are there; copy or download it again")
    return {
        name: Tensor(file, entry["dtype"], tuple(entry["shape"]), *(data + offset for offset in entry["data_offsets"]))
        for name, entry in entries.items()
    }
