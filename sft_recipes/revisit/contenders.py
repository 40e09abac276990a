"""What a person may name to be judged: a run, a model's folder or a Hub id; and how each would be served.

A run is judged by the folder it deployed (or its adapter), a model by its own tokenizer, chat template, response template and
stop tokens; a model without a chat template wears the recipe's, as it would at the start of a training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..config import Resolved
from ..export.folder import declared_stops
from ..prepare import Prepared, prepare_held_out
from ..recipe import Recipe, RecipeError, nearest
from ..run import Run, find
from ..weights import load_adapter, load_base, load_model, own_tokenizer, refuse_another
from .opening import refuse_changed, reopen

SHOWN = 3  # faults of one model


@dataclass
class Contender:
    """A model that is about to be judged: the questions as it would be asked them, and how it is loaded."""

    name: str
    prepared: Prepared
    score: Callable[[dict, dict], dict[str, float]]
    load: Callable[[], Any]
    stops: Callable[[Any], set[int]]
    remarks: list[str] = field(default_factory=list)


def told_apart(names: Sequence[str], recipe: str) -> dict[str, Run | None]:
    """Each name with its run, or with `None` where it is a model's.

    Raises:
        RecipeError: what is neither, and models that nobody has said how to judge; all together.
    """
    opened = {name: find(name) for name in names}
    found = {name: run if _is_run(run.folder) else None for name, run in opened.items()}
    judge = bool(recipe) or any(found.values())
    faults = [_unfit(name, opened[name], judge) for name, run in found.items() if run is None]
    if any(faults):
        raise RecipeError(*filter(None, faults))
    return found


def _is_run(folder: Path) -> bool:
    """A deployed folder has the `recipe.json` of its run in it too."""
    return (folder / "recipe.json").is_file() and not (folder / "config.json").is_file()


def _unfit(name: str, run: Run, judge: bool) -> str:
    """Why a name that is no run's cannot be judged as a model; nothing where it can.

    Args:
        run: where one of that name would be.
        judge: whether it is known whose conversations it would be judged on.
    """
    unjudged = f"{name} is no run; a model needs a recipe whose held-out conversations judge it: --recipe NAME"
    if (Path(name) / "adapter_config.json").is_file():
        return f"{name} is an adapter: name its run, with --adapter"
    if (Path(name) / "config.json").is_file():
        return "" if judge else unjudged
    if run.folder.is_dir():
        return f"{run.folder} is neither a run (no recipe.json in it) nor a model (no config.json)"
    if _of_hub(name) and (judge or "/" in name):
        return _absent_from_hub(name, run) if judge else unjudged
    return _no_run(name, run)


def _absent_from_hub(name: str, run: Run) -> str:
    try:
        own_tokenizer(name)
    except RecipeError as error:
        return f"{_no_run(name, run)}; {error}"
    return ""


def _no_run(name: str, run: Run) -> str:
    around = {folder for folder in (run.folder.parent, Path(name).parent) if folder.is_dir()}
    beside = [path.name for folder in around for path in folder.iterdir() if path.is_dir()]
    return f"no run at {run.folder}{nearest(run.folder.name, beside)}"


def _of_hub(name: str) -> bool:
    """Whether it may be a Hub id: of that form, and not a path beside others that are there."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" not in name or not Path(name).parent.is_dir()


def of_run(name: str, run: Run, said: Resolved | None, adapter: bool, changed: Mapping[str, Any]) -> Contender:
    """A run, on the conversations of a recipe that was named, or on its own."""
    folder = run.adapter if adapter else run.merged
    if not folder.is_dir():
        other = "without --adapter its deployed folder is judged" if adapter else "the run has not finished"
        raise RecipeError(f"{run.folder} holds no {folder.name}/: {other}")
    own = None if said and not adapter else reopen(str(run.folder), **({} if said else changed))[1]
    if said is None:
        assert own is not None
        prepared = prepare_held_out(own.trainer_class, own.recipe, own.config.max_length)
        refuse_changed(run, prepared, other_data=not {"data", "held_out"}.isdisjoint(changed))
    else:
        prepared = prepare_held_out(said.trainer_class, _as_served(said.recipe, str(folder), True, {}), said.config.max_length)
    if adapter and own is not None:
        refuse_another(folder, own.recipe)
    stops = set(prepared.tokenizer.convert_tokens_to_ids(run.read("metrics.json")["stop_tokens"]))

    def load() -> Any:
        if not adapter or own is None:
            return load_model(str(folder), "auto")
        return load_adapter(load_base(own.recipe, prepared.tokenizer), folder).eval()

    return Contender(name, prepared, (said or own).trainer_class.score, load, lambda _: stops)  # type: ignore[union-attr]


def of_model(name: str, said: Resolved, changed: Mapping[str, Any]) -> Contender:
    """A folder or Hub id, on the conversations of a recipe."""
    own = bool(own_tokenizer(name, changed.get("revision")).chat_template) and "chat_template" not in changed
    recipe = _as_served(said.recipe, name, own, changed)
    try:
        prepared = prepare_held_out(said.trainer_class, recipe, said.config.max_length)
    except RecipeError as error:
        other = f"--chat_template {said.recipe.chat_template} judges it by the recipe's template"
        more = ["... and more"] if len(error.faults) > SHOWN else []
        raise RecipeError(*error.faults[:SHOWN], *more, *([other] if own and said.recipe.chat_template else [])) from error

    def stops(model: Any) -> set[int]:
        """Those it declares, if any; one that wears the recipe's template is to stop as a run on it, before and after training."""
        declared = set(declared_stops(model.generation_config)) if own else set()
        return declared or prepared.stop_ids

    found = Contender(name, prepared, said.trainer_class.score, lambda: load_base(recipe, prepared.tokenizer), stops)
    calls = sum(bool(question.expected.get("tool_calls")) for question in prepared.questions)
    if calls and getattr(prepared.tokenizer, "response_template", None) is None:
        found.remarks.append(f"{name}: its tokenizer has no response template, so no call of it is read; {calls} turns should call")
    return found


def _as_served(recipe: Recipe, model: str, own_template: bool, changed: Mapping[str, Any]) -> Recipe:
    """The recipe with another model in place of its base, which is loaded as it is: nothing is trained on it."""
    dressing = {"chat_template": None, "stop_token": None} if own_template else {}
    given = {key: changed[key] for key in ("revision", "dtype", "quantization") if key in changed}
    plain = {"quantization": None, "dtype": "auto", "adapter": None, "start_from": None, "from_scratch": False}
    return recipe.with_fields({**plain, **dressing, **given, "model": model, "revision": given.get("revision")})
