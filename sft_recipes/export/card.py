"""The model card, `README.md` of the deployed folder: what it is, how it was made, what it scored, that it is what was trained."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..recipe import Recipe
from .folder import of_base

TEMPLATE = Path(__file__).with_name("card.md.jinja")
SAMPLES = 3
LICENSE = ("license", "license_name", "license_link")


def write_card(folder: Path, recipe: Recipe, proof: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write `README.md` and `recipe.json` into the deployed folder.

    Args:
        folder: complete but for these.
        recipe: names the base, whose licence is carried on where its own card states one.
        proof: from `prove`, with `base`.
        about: `recipe`, the content of the run's `recipe.json`; `metrics`, that of its `metrics.json` so far; `samples`, lines
            of its `samples.jsonl`.
    """
    made, metrics = about["recipe"], about["metrics"]
    licence = _licence(recipe)
    base = made["base"]["model"]
    data = ModelCardData(
        **licence,
        base_model=None if recipe.from_scratch or Path(base).is_dir() else base,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["sft", "trl", "sft_recipes"],
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        made=made,
        metrics=metrics,
        proof=proof,
        base=base if not Path(base).is_dir() else Path(base).name,
        licence=licence.get("license_name") or licence.get("license"),
        options=_options(made["overrides"]),
        samples=_read_out(about["samples"]),
        number=_number,
    )
    card.save(folder / "README.md")
    (folder / "recipe.json").write_text(json.dumps(made, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def _licence(recipe: Recipe) -> dict[str, Any]:
    """What the base's own card says of its licence, if it has a card."""
    found = None if recipe.from_scratch else of_base(recipe, "README.md")
    if found is None:
        return {}
    data = ModelCard(found.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    return {key: data[key] for key in LICENSE if data.get(key)}


def _options(overrides: Mapping[str, Any]) -> str:
    """What was changed on the command line, as it is typed; a path by its last part, which is what it means elsewhere."""
    return "".join(f" --{'from' if key == 'start_from' else key} {_short(value)}" for key, value in overrides.items())


def _short(value: Any) -> str:
    text = str(value)
    return Path(text).name if "/" in text and Path(text).exists() else text


def _read_out(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A few generations spread over the held-out data, in fences that no text of theirs can close."""
    after = [sample for sample in samples if sample["stage"] == "after"]
    chosen = after[:: max(1, len(after) // SAMPLES)][:SAMPLES]
    return [{"asked": _fenced(s["asked"]), "reply": _fenced(s["reply"])} for s in chosen]


def _fenced(text: str) -> str:
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _number(value: float) -> str:
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"
