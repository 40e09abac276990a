"""What a run was, in words: how it ended, what was trained on what, the proof, and how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from .reading import Told
from .wording import number, place, sources

LISTED = 50  # conversations named where some are left out
SIZES = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"}
PARTS = {"merged": "what it deployed", "adapter": "its adapter"}


class Fact(NamedTuple):
    """A line of a list: what it is, what it is here, and its hash where it has one."""

    name: str
    said: str
    sha256: str = ""


class Ending(NamedTuple):
    """How a run ended: `deployed`, `refused` or `unfinished`; in words; and every fault that was found."""

    kind: str
    said: str
    faults: list[str]


def ending(told: Told) -> Ending:
    """How the run ended, and where it did not get that far, what to type."""
    run, merge = told.run.folder, told.metrics.get("merge") or {}
    if not told.metrics:
        newest = f"; its newest checkpoint is of step {told.last_step:,}" if told.history else ""
        return Ending("unfinished", f"Not finished: the trained model has not been judged{newest}. To continue, add --resume.", [])
    if faults := merge.get("faults"):
        said = "Refused: the model to be deployed is not proven to be the one that was trained. Nothing was deployed."
        return Ending("refused", said, list(map(str, faults)))
    if not merge:
        return Ending("unfinished", f"Trained and judged, not deployed. Next: make merge RUN={place(run)}", [])
    return Ending("deployed", "Deployed, and proven to be the model that was trained.", [])


def name(told: Told) -> str:
    """The recipe, and the arm of its ablation where it is not the first."""
    arm = (told.recipe.get("overrides") or {}).get("arm")
    return f"{told.recipe.get('recipe') or told.run.folder.name}{f', {arm}' if arm else ''}"


def heading(told: Told) -> str:
    """One line under the name of the recipe: the base, what is trained of it, at which scale, for how long."""
    said, resolved = told.recipe, told.recipe.get("resolved", {})
    base = place((said.get("base") or {}).get("model") or resolved.get("model") or "an unknown base")
    start = f"{base}, from scratch" if resolved.get("from_scratch") else f"{_adapter(resolved.get('adapter'), False)} on {base}"
    seconds = (told.metrics.get("train") or {}).get("train_runtime")
    time = f", {_duration(seconds)}" if seconds else ""
    steps = f", {told.last_step:,} steps{time}" if told.last_step else ""
    return f"{start}, {said.get('scale', 'unknown')} scale{steps}"


def trained_on(told: Told) -> list[Fact]:
    """What was trained on what."""
    said, resolved = told.recipe, told.recipe.get("resolved", {})
    base, hashes = said.get("base") or {}, said.get("data") or {}
    revision = f" at {base['revision']}" if base.get("revision") else ""
    name = f"{place(base.get('model') or resolved.get('model', 'unknown'))}{revision}"
    drawn = ", weights drawn anew from the seed" if resolved.get("from_scratch") else ""
    facts = [Fact("Base", name + drawn, base.get("sha256") or "")]
    facts += [Fact("Continues", line) for line in ancestors(said.get("from"))]
    facts += [Fact("Trains", _adapter(resolved.get("adapter"), True) + _quantization(resolved.get("quantization")))]
    facts += [Fact("Train", sources(resolved.get("data", "unknown")), hashes.get("train", ""))]
    facts += [Fact("Held-out", sources(resolved.get("held_out", "unknown")), hashes.get("held_out", ""))]
    if resolved.get("retain"):
        facts.append(Fact("Retained", sources(resolved["retain"]), hashes.get("retained", "")))
    facts.append(Fact("Chat template", place(resolved.get("chat_template") or "the base's own"), said.get("chat_template") or ""))
    if stops := told.metrics.get("stop_tokens"):
        facts.append(Fact("Turns end in", " ".join(map(str, stops))))
    if layout := said.get("layout"):
        facts.append(Fact("Rows", f"{layout.get('name', 'unknown')}: {layout.get('reason', '')}"))
    return facts + _optimisation(said.get("config") or {})


def _optimisation(config: Mapping[str, Any]) -> list[Fact]:
    """How it was trained, as far as most people ask."""
    if not config:
        return []
    steps = config.get("max_steps") or -1
    length = f"{steps:,} steps" if steps > 0 else f"{config.get('num_train_epochs', '?')} epochs"
    batch = f"{config.get('per_device_train_batch_size', '?')} × {config.get('gradient_accumulation_steps', '?')} conversations a step"
    rate = f"learning rate {config.get('learning_rate', '?'):g}" if isinstance(config.get("learning_rate"), float) else ""
    noise = f"NEFTune {config['neftune_noise_alpha']:g}" if config.get("neftune_noise_alpha") else ""
    parts = [length, f"{batch} and device", rate, str(config.get("lr_scheduler_type", "")), noise, f"seed {config.get('seed', '?')}"]
    return [Fact("Optimisation", ", ".join(part for part in parts if part))]


def _adapter(adapter: Mapping[str, Any] | None, whole: bool) -> str:
    """What is trained; of an adapter its kind and rank, and as a `whole` its other sizes and what it is on."""
    if not adapter:
        return "all weights" if whole else "all weights trained"
    kind = {"LORA": "LoRA"}.get(str(adapter.get("peft_type")), str(adapter.get("peft_type", "an adapter")))
    sizes = [f"{word} {adapter[key]:g}" for key, word in SIZES.items() if adapter.get(key)]
    ranked = f"{kind} of {', '.join(sizes if whole else sizes[:1])}" if sizes else kind
    targets = adapter.get("target_modules") if whole else None
    return f"{ranked}, on {', '.join(sorted(targets)) if isinstance(targets, list) else targets}" if targets else ranked


def _quantization(quantization: Mapping[str, Any] | None) -> str:
    if not quantization:
        return ""
    bits = "4 bits" if quantization.get("load_in_4bit") else "8 bits" if quantization.get("load_in_8bit") else "quantised"
    kind = str(quantization.get("bnb_4bit_quant_type", "")).upper() if bits == "4 bits" else ""
    return f"; the base frozen in {bits}{f' ({kind})' if kind else ''}"


def ancestors(origin: Mapping[str, Any] | None) -> list[str]:
    """The runs that this one continues, the nearest first."""
    found = []
    while origin:
        score = f", {origin['primary']} {number(origin['score'])}" if origin.get("primary") and origin.get("score") is not None else ""
        named = f"{origin.get('recipe', 'a run')} ({origin.get('scale', 'unknown')} scale{score})"
        found.append(f"{named}, from {PARTS.get(str(origin.get('part')), 'its model')}")
        origin = origin.get("from")
    return found


COUNTS = ("conversations", "turns", "rows", "tokens", "supervised_tokens", "lost_tokens", "longest")


def counts(told: Told) -> list[tuple[str, list[str]]]:
    """The account of the supervision: a line for each count, the training data's and the held-out data's."""
    parts = [told.metrics.get("supervision", {}).get(part) or {} for part in ("train", "held_out")]
    names = [name for name in COUNTS if any(name in part for part in parts)]
    return [(name.replace("_", " "), [number(part.get(name)) for part in parts]) for name in names]


def left_out(told: Told) -> list[tuple[str, int, list[str]]]:
    """Conversations that were not trained whole: what became of them, how many, and the first of them by file and line."""
    kinds = {"trimmed": "cut after a whole turn", "dropped": "left out, too long", "unsupervised": "without a message to learn"}
    found = []
    for part, whose in (("train", ""), ("held_out", "held-out ")):
        account = told.metrics.get("supervision", {}).get(part) or {}
        found += [(f"{whose}conversations {said}", len(account[k]), account[k][:LISTED]) for k, said in kinds.items() if account.get(k)]
    return found


def proof(told: Told) -> list[str]:
    """The merge proof in sentences, as much of it as there is."""
    said, found = told.metrics.get("merge") or {}, []
    if "kl" in said:
        loss = f"; held-out loss {said['loss']:.4f}, trained {said['trained_loss']:.4f}" if {"loss", "trained_loss"} <= said.keys() else ""
        found.append(
            f"Reloaded from disk in a fresh process: mean KL {said['kl']:.1e} per supervised token to the trained model, at most "
            f"{said.get('max_kl', float('nan')):.1e}, over {number(said.get('tokens'))} tokens{loss}."
        )
    if "generations" in said:
        trained = f", trained {said['trained_stops']:.1%}" if "trained_stops" in said else ""
        equal = "equal" if said.get("generations_equal") else "not all equal"
        found.append(f"{said['generations']:,} greedy generations {equal}; {said.get('stops', 0):.1%} stop by themselves{trained}.")
    if "prompts" in said:
        found.append(f"{said['prompts']:,} training prompts rendered again to the ids that were trained on.")
    for base, numbers in (said.get("bases") or {}).items():
        if "kl" in numbers and (base != said.get("base") or base != "trained"):
            used = " This is what was kept." if base == said.get("base") else ""
            found.append(f"Merged into the {base} base: mean KL {numbers['kl']:.1e}, held-out loss {number(numbers.get('loss'))}.{used}")
    return found


def commands(told: Told) -> list[str]:
    """What to type to have this run again: with make and without; in Python where it was changed by what no command line can say."""
    name, scale = str(told.recipe.get("recipe")), str(told.recipe.get("scale"))
    overrides: Mapping[str, Any] = told.recipe.get("overrides") or {}
    if any(not isinstance(value, (str, int, float)) for value in overrides.values()):
        changed = "".join(f", {key}={value!r}" for key, value in overrides.items())
        return [f'build_trainer("{name}", scale="{scale}"{changed}).train()']
    words = [word for key, value in overrides.items() for word in _typed(key, value)]
    make = f" ARGS={shlex.quote(shlex.join(words).replace('$', '$$'))}" if words else ""
    return [f"make train RECIPE={name} SCALE={scale}{make}", shlex.join(["sft-recipes", "train", name, "--scale", scale, *words])]


def _typed(key: str, value: Any) -> list[str]:
    name, text = "from" if key == "start_from" else key, str(value).lower() if isinstance(value, bool) else str(value)
    return [f"--{name}={text}"] if text.startswith("--") else [f"--{name}", text]


def machine(told: Told) -> list[Fact]:
    """Versions, and the hardware where the run has written it down."""
    hardware = told.recipe.get("hardware")
    said = ", ".join(f"{key} {value}" for key, value in hardware.items()) if isinstance(hardware, Mapping) else hardware
    versions = told.recipe.get("versions") or {}
    found = [Fact("Versions", ", ".join(f"{library} {version}" for library, version in versions.items()))] if versions else []
    return [*found, *([Fact("Hardware", str(said))] if said else [])]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
