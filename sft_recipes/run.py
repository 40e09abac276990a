"""The run folder, `runs/<recipe>/`: what is in it, and how it is written.

recipe.json      everything resolved: recipe, configuration, versions, hashes of the data and of the base; the run it started from
metrics.json     scores before and after, the merge proof, the account of the supervision
samples.jsonl    every generation, before and after
history.jsonl    everything logged during training, step by step
checkpoints/     the trainer's own
adapter/         the trained adapter, as PEFT loads it
merged/          the deployable folder
wandb/           the offline run, where the person is not logged in
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .recipe import RecipeError, nearest
from .scores import MANNER


@dataclass(frozen=True)
class Run:
    """Paths of one run; nothing is created before it is written."""

    folder: Path

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def merged(self) -> Path:
        return self.folder / "merged"

    def write(self, name: str, content: Any) -> None:
        """Write one JSON file, whole or not at all."""
        self._replace(name, json.dumps(content, indent=2, ensure_ascii=False, default=_plain) + "\n")

    def write_lines(self, name: str, records: Iterable[dict[str, Any]]) -> None:
        """Write one JSON object a line, whole or not at all."""
        self._replace(name, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))

    def _replace(self, name: str, text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f".{name}.unfinished"
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, self.folder / name)

    def read(self, name: str) -> Any:
        """One of the run's JSON files.

        Raises:
            RecipeError: there is no such run, or it has not got that far.
        """
        file = self.folder / name
        if not self.folder.is_dir():
            others = [p.name for p in self.folder.parent.iterdir() if p.is_dir()] if self.folder.parent.is_dir() else []
            raise RecipeError(f"no run at {self.folder}{nearest(self.folder.name, others)}")
        if not file.is_file():
            raise RecipeError(f"{self.folder} holds no {name}: the run has not finished")
        return json.loads(file.read_text(encoding="utf-8"))

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """One of the run's files of one JSON object a line."""
        return [json.loads(line) for line in (self.folder / name).read_text(encoding="utf-8").splitlines()]

    def set_aside(self) -> Path | None:
        """Move an earlier run of the same name to `<name>.1`, `.2`, ...: nothing finished is overwritten."""
        if not (self.folder / "recipe.json").is_file():
            return None
        number = 1
        while (target := self.folder.with_name(f"{self.folder.name}.{number}")).exists():
            number += 1
        return self.folder.rename(target)


def _plain(value: Any) -> str:
    """What JSON has no word for, as text; a function by its name, which is the same in every process."""
    if isinstance(value, partial):
        words = [*map(repr, value.args), *(f"{name}={given!r}" for name, given in value.keywords.items())]
        return f"{_plain(value.func)}({', '.join(words)})"
    return f"{value.__module__}.{value.__qualname__}" if callable(value) else str(value)


def find(name: str) -> Run:
    """A run by its folder or by its recipe's name (`gemma-tools` stands for `runs/gemma-tools`)."""
    typed, short = Path(name), Path("runs") / name
    elsewhere = len(typed.parts) > 1 and typed.parent.is_dir() and not short.is_dir()  # no such folder, but beside others
    return Run(typed if typed.is_dir() or elsewhere else short)


LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes")


def describe(resolved: Any, prepared: Any, layout: Any, base: dict[str, Any]) -> dict[str, Any]:
    """The content of `recipe.json`: what it takes to repeat the run, and to know whether it was repeated.

    Args:
        resolved, prepared, layout: of the run.
        base: the `weights.identity` of what it trains on.
    """
    recipe = asdict(resolved.recipe)
    for name in ("adapter", "quantization"):
        if recipe[name] is not None:
            recipe[name] = getattr(resolved.recipe, name).to_dict()
    return {
        "recipe": resolved.name,
        "scale": resolved.scale,
        "overrides": resolved.overrides,
        "resolved": {key: value for key, value in recipe.items() if key != "tiny"},
        "config": resolved.config.to_dict(),
        "base": base,
        "from": resolved.origin,
        "data": {"train": prepared.train.hash, "held_out": prepared.held_out.hash},
        "chat_template": prepared.chat_template_hash,
        "layout": layout.as_dict(),
        "versions": {library: version(library) for library in LIBRARIES},
    }


def summary(run: Run, samples: int = 3) -> dict[str, Any]:
    """What a person wants to know of a finished run: scores, a few generations, the proof, where everything is."""
    metrics = run.read("metrics.json")
    after = [sample for sample in run.read_lines("samples.jsonl") if sample["stage"] == "after"]
    chosen = after[:: max(1, len(after) // samples)][:samples]
    return {
        **{key: metrics[key] for key in ("primary", "before", "after", "merge")},
        "samples": [_read_out(sample, metrics["primary"]) for sample in chosen],
        "run": str(run.folder),
        "merged": str(run.merged),
    }


def _read_out(sample: dict[str, Any], primary: str) -> dict[str, Any]:
    """A sample short enough to read: what was asked, the reply, whether it was right; a manner is neither right nor wrong."""
    right = primary in MANNER or sample["scores"].get(primary, 1.0) == 1.0
    where = f"{Path(sample['source']).name}, message {sample['message_index']}"
    return {"source": where, "asked": sample["asked"][-400:], "reply": sample["reply"], "right": right}
