"""The run folder, `runs/<recipe>/`: what is in it, and how it is written.

recipe.json      everything resolved: recipe, configuration, versions, hashes of the data and of the base; the run it started from
metrics.json     scores before and after, which checkpoint was kept, the merge proof, the account of the supervision
samples.jsonl    every generation: before, after, and at the end where an earlier checkpoint was kept
history.jsonl    everything logged during training, step by step, evaluations among it
rows.jsonl       three training rows, token by token, with their mask
report.html      all of it on one page
checkpoints/     the trainer's own
adapter/         the trained adapter, as PEFT loads it
merged/          the deployable folder
wandb/           the offline run, where the person is not logged in; tensorboard/ where --report_to tensorboard asks for it
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .excerpt import right, spoken
from .public import public
from .recipe import RecipeError, nearest

# What is looked up in them; a file that lacks it, or has another thing there, is not as a run writes it.
KINDS: dict[str, type] = dict.fromkeys(
    "overrides data resolved config layout versions before after merge best curves supervision train".split(), dict
)
KINDS |= dict.fromkeys(("recipe", "scale", "primary", "stage", "source", "reply"), str) | {
    "scores": dict,
    "expected": dict,
    "stop_tokens": list,
}


class Content(dict):
    """What one of a run's files says; a field that is asked for and not there is a fault of the file."""

    def __init__(self, found: Any, where: str):
        if not isinstance(found, dict):
            raise RecipeError(f"{where}: expected an object, found {type(found).__name__}; {DAMAGED}")
        for key, value in found.items():
            if value is not None and not isinstance(value, KINDS.get(key, object)):
                raise RecipeError(f"{where}: {key} is {type(value).__name__}, expected {KINDS[key].__name__}; {DAMAGED}")
        super().__init__(found)
        self.where = where

    def __missing__(self, key: str) -> Any:
        raise RecipeError(f"{self.where}: no `{key}` in it; {DAMAGED}")


DAMAGED = "the file is damaged, or not a run's; put back a copy, or train anew"


def _parsed(text: bytes, where: str) -> Content:
    try:
        return Content(json.loads(text), where)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{where}: not JSON: {error}; {DAMAGED}") from error


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
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False, default=_plain) + "\n")

    def write_lines(self, name: str, records: Iterable[dict[str, Any]]) -> None:
        """Write one JSON object a line, whole or not at all."""
        self.write_text(name, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))

    def write_text(self, name: str, text: str) -> None:
        """Write one file as it is, whole or not at all.

        Raises:
            RecipeError: the disk was full, or the folder may not be written; what was there stays.
        """
        unfinished = self.folder / f".{name}.unfinished"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(text.encode("utf-8", "surrogatepass"))
            os.replace(unfinished, self.folder / name)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink()
            raise RecipeError(f"{self.folder / name}: it could not be written, what was there stays: {error.strerror or error}") from error

    def read(self, name: str) -> Any:
        """One of the run's JSON files.

        Raises:
            RecipeError: there is no such run, it has not got that far, or the file is damaged.
        """
        file = self.folder / name
        if not self.folder.is_dir():
            others = [p.name for p in self.folder.parent.iterdir() if p.is_dir()] if self.folder.parent.is_dir() else []
            raise RecipeError(f"no run at {self.folder}{nearest(self.folder.name, others)}")
        if not file.is_file():
            raise RecipeError(f"{self.folder} holds no {name}: the run has not finished")
        return _parsed(file.read_bytes(), str(file))

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """One of the run's files of one JSON object a line.

        Raises:
            RecipeError: it is damaged, with the line.
        """
        lines = (self.folder / name).read_bytes().split(b"\n")  # a reply may hold what `splitlines` takes for the end of one
        return [_parsed(line, f"{self.folder / name}:{number}") for number, line in enumerate(lines, 1) if line]

    def set_aside(self) -> Path | None:
        """Move an earlier run of the same name to `<name>.1`, `.2`, ...: nothing finished is overwritten."""
        if not (self.folder / "recipe.json").is_file():
            return None
        number = 1
        while (target := self.folder.with_name(f"{self.folder.name}.{number}")).exists():
            number += 1
        return self.folder.rename(target)


def written(content: Any) -> Any:
    """What is read again where this is written."""
    return json.loads(json.dumps(content, default=_plain))


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
    found = {
        "recipe": resolved.name,
        "scale": resolved.scale,
        "overrides": resolved.overrides,
        "resolved": {key: value for key, value in recipe.items() if key != "tiny"},
        "config": resolved.config.to_dict(),
        "base": base,
        "from": resolved.origin,
        "data": {name: part.hash for name in ("train", "held_out", "retained", "replayed") if (part := getattr(prepared, name))},
        "chat_template": prepared.chat_template_hash,
        "layout": layout.as_dict(),
        "versions": {"python": platform.python_version(), **{library: version(library) for library in LIBRARIES}},
        "hardware": hardware(),
        "processes": resolved.config.world_size,
    }
    return public(found)


def hardware() -> str:
    """What this process trains on, in words."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"


def summary(run: Run, samples: int = 3) -> dict[str, Any]:
    """What a person wants to know of a finished run: scores, what was kept and why, a few generations, the proof, where everything is.

    Args:
        samples: generations after training: one of the wrong ones, if there are, the others right.
    """
    metrics = run.read("metrics.json")
    lines = run.read_lines("samples.jsonl") if (run.folder / "samples.jsonl").is_file() else []
    after = [_read_out(sample, metrics["primary"]) for sample in lines if sample["stage"] == "after"]
    wrong = [sample for sample in after if sample["right"] is False]
    others = _spread([sample for sample in after if sample["right"] is not False], samples - bool(wrong))
    wrong = _spread(wrong, samples - len(others))
    page = run.folder / "report.html"
    return {
        **{key: metrics[key] for key in ("primary", "before", "after", "merge")},
        **{key: metrics[key] for key in ("best", "curves", "retain", "end") if key in metrics},
        "samples": others[:1] + wrong + others[1:],
        "run": str(run.folder),
        "merged": str(run.merged),
        "report": str(page) if page.is_file() else None,
    }


def _spread(samples: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return samples[:: max(1, len(samples) // max(1, count))][:count]


def _read_out(sample: dict[str, Any], primary: str) -> dict[str, Any]:
    """A sample short enough to read: what was asked, the reply, the reference, whether it was right (`None`: the score does not tell)."""
    where = f"{Path(sample['source']).name}, message {sample['message_index']}"
    said = {"asked": sample["asked"][-400:], "reply": sample["reply"], "reference": spoken(sample.get("expected", {}))}
    return {"source": where, **said, "right": right(sample["scores"], primary)}
