"""What a recipe says: find it, load it, validate it, change it.

A recipe is one module in a folder `recipes/`, holding one `RecipeTrainer` subclass with a `recipe = Recipe(...)`. The
folder is the registry: a person's own `recipes/` in the working directory comes first, then the ones shipped here.

The errors a person can meet, all of them one line per fault:

    RecipeError                 something in a recipe, its data, its model or the command line
      └── SupervisionError      a turn that cannot be trained as it will be served
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
TINY = PACKAGE / "tiny"  # the embedded model and data of the tiny scale
BREAK, LONGEST = re.compile(r"\s*[\r\n]\s*"), 2000  # of a fault
# In a wheel our recipes travel inside the package, because a top-level `recipes` collides with others (torchtune's).
SHIPPED = PACKAGE / "recipes" if (PACKAGE / "recipes").is_dir() else PACKAGE.parent / "recipes"


class RecipeError(Exception):
    """One or several faults a person can mend; `str()` gives one line per fault.

    Args:
        faults: what was found, where, and what to do, one text per fault; each is made `one_line`.
    """

    def __init__(self, *faults: str):
        self.faults = [one_line(fault) for fault in faults]
        super().__init__("\n".join(self.faults))


class SupervisionError(RecipeError):
    """A turn that cannot be trained exactly as it will be served."""


def one_line(text: str) -> str:
    """A text as one line that any terminal shows as it is, 2,000 characters at most: what a person's data hold may be quoted in it."""
    text = BREAK.sub(" ", text)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


@dataclass(frozen=True)
class Source:
    """Where conversations come from.

    Attributes:
        path: a `.jsonl` file (one conversation a line), a `.json` list, a `.parquet` file, or a dataset of the Hub or folder that
            `datasets.load_dataset` reads.
        name: the dataset's configuration, as `load_dataset` names it.
        split: the dataset's split, likewise.
    """

    path: str
    name: str | None = None
    split: str = "train"

    def __str__(self) -> str:
        return ":".join(part for part in (self.path, self.name, self.split) if part) if self.name else self.path


Rows = Callable[[], Iterable[dict]]  # data that a recipe makes itself: rows in any form, the same at every call
Data = str | Source | Rows | tuple[str | Source | Rows, ...]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A fine-tuning run as its author declares it. What upstream names already goes by its own name.

    Attributes:
        model: folder or Hub id of the base model.
        revision: of `model` on the Hub: a branch, tag or commit.
        start_from: an earlier run (its folder or its recipe's name), whose deployed model is trained on instead of `model`; or the
            `adapter` folder of one, whose adapter is trained on.
        from_scratch: `model` is a folder with a `config.json` and a tokenizer, and its weights are drawn anew from the seed.
        data: training conversations: a path, a `Source`, a function that makes rows, or a tuple of them.
        streaming: read `data` as they are trained, in windows of at most 20,000 conversations, and never all at once; `max_steps` says
            how long. What `check` and `show` see, and what is held out, is of the first window; the others are checked when they come.
        held_out: conversations for evaluation, likewise; or a number: that many are split off `data`, by content.
        adapter: a `peft.LoraConfig` (or another `PeftConfig`); `None` trains all weights.
        quantization: a `transformers.BitsAndBytesConfig` for the frozen base; `None` keeps it whole.
        dtype: of the weights in memory and of the deployed folder: `bfloat16`, `float16` or `float32`.
        chat_template: `chatml`, `gemma`, `llama3` or another of TRL's, `plain` (text without roles), or a `.jinja` file; needed
            for a tokenizer without one.
        stop_token: the token that ends a turn where the template has none of its own: with `plain`, or a template of text.
        template_kwargs: passed to `apply_chat_template` in training, evaluation and serving alike.
        last_turn_only: learn only the last assistant message of each conversation; earlier ones are context.
        allow_control_tokens: let a message's text hold control tokens of the tokenizer; otherwise that is a fault of its row.
        mask: what carries loss: `completion`, or `everything` to compare with, where a model is trained from scratch.
        loss_per: `token`: every supervised token of a step counts alike; `example`: every conversation does, by its own mean.
        overlong: of a conversation longer than `max_length`, `trim` keeps the turns that fit, whole; `drop` leaves it out; `refuse`
            makes it a fault. What is left out is listed with file and line.
        max_lost: share of the supervised training tokens that may be lost to that, 0 to 1; above it training is refused.
        packing: `tree`: rows in which equal beginnings are stored and computed once; `bfd`: packed rows of whole conversations
            (TRL's name); `none`: one conversation a row, padded; `auto`: the cheapest that is exact for the model.
        row_tokens: size of a packed row, of which a micro-batch is one; `None`: as many packed rows as there would be micro-batches,
            so that each holds `per_device_train_batch_size` conversations on average, and the steps stay.
        loraplus_lr_ratio: LoRA+ (arXiv 2402.12354): the learning rate of LoRA's B is this many times that of A; `None` for LoRA.
        bad_step: a step whose loss or gradient is not finite, or whose gradient explodes, will `stop` the run or is to `skip`.
        primary: the score that says whether the run worked, and which checkpoint is kept (of equal ones that with the lower held-out
            loss; `metric_for_best_model` names another); one of the names that `score` returns, or `eval_loss`.
        patience: so many evaluations without a better score end the training; `None` for none.
        retain: what the model is to keep: conversations, or rows with a `text`, as `data` has them. A fifth, 200 at most, chosen by
            content, is measured at each evaluation: mean loss, and the share of tokens that would be the model's own choice.
        max_rise: of the loss on `retain`, in nats per token, over what it was before training.
        forgetting: above `max_rise`, `warn`, or `stop`: training ends, and no checkpoint beyond it is kept.
        mix: the share of the supervised training tokens that are replayed, 0 to below 1: taken from what of `retain` is not measured.
        loss_hint: a training loss, in nats, that a run which learns is below at its end; above it, it is told what to look at.
        max_new_tokens: limit of a generated turn in evaluation, in tokens.
        base: what an adapter of quantised weights is merged into: `trained`: the weights that those stand for, which it was trained
            on; `original`: the checkpoint; `measured`: both, and the one with the lower held-out loss is kept.
        max_kl: bound on the mean KL per supervised token, in nats, between trained and deployed model.
        config: fields of `RecipeConfig` (a `trl.SFTConfig`) by their own names.
        ablation: runs that are compared: a name for each, and the fields of `Recipe` and `config` in which it differs; the
            first is the recipe itself.
        tiny: fields of `Recipe` to replace at tiny scale; its `config` is laid over the one above. Without any, the full
            scale is small enough for every machine.

    Raises:
        RecipeError: `tiny` names a field that does not exist.
    """

    model: str
    revision: str | None = None
    start_from: str | None = None
    from_scratch: bool = False
    data: Data
    streaming: bool = False
    held_out: int | Data = 200
    adapter: Any = None
    quantization: Any = None
    dtype: str = "bfloat16"
    chat_template: str | None = None
    stop_token: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    last_turn_only: bool = False
    allow_control_tokens: bool = False
    mask: str = "completion"
    loss_per: str = "token"
    overlong: str = "trim"
    max_lost: float = 0.01
    packing: str = "auto"
    row_tokens: int | None = None
    loraplus_lr_ratio: float | None = None
    bad_step: str = "stop"
    primary: str = "eval_loss"
    patience: int | None = None
    retain: Data | None = None
    max_rise: float = 0.1
    forgetting: str = "warn"
    mix: float = 0.0
    loss_hint: float | None = None
    max_new_tokens: int = 512
    base: str = "trained"
    max_kl: float = 1e-3
    config: Mapping[str, Any] = field(default_factory=dict)
    ablation: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {f.name for f in dataclasses.fields(self)} - {"tiny"}
        unknown = [unknown_name("field of `tiny`", name, known) for name in self.tiny if name not in known]
        if unknown:
            raise RecipeError(*unknown)

    def at(self, scale: str) -> Recipe:
        """This recipe at `full` or `tiny` scale."""
        if scale == "full":
            return self
        return self.with_fields({**self.tiny, "config": {**self.config, **self.tiny.get("config", {})}})

    def with_fields(self, fields: Mapping[str, Any]) -> Recipe:
        """This recipe with other values of some fields; a `revision` belongs to its `model`, and goes when that does."""
        gone = {"revision": None} if "model" in fields else {}
        return dataclasses.replace(self, **{**gone, **fields})


def sources(value: Data) -> list[Source | Rows]:
    """One or several sources in any of the forms that `Recipe.data` takes, as a list."""
    several = value if isinstance(value, tuple) else (value,)
    return [Source(item) if isinstance(item, str) else item for item in several]


def nearest(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` with the closest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The one line that answers a name nobody knows."""
    return f"unknown {kind} '{name}'{nearest(name, known)}"


def folders() -> list[Path]:
    """The folders that hold recipes: the person's own first, then the shipped ones."""
    own = Path.cwd() / "recipes"
    return [own, SHIPPED] if own.is_dir() and own.resolve() != SHIPPED.resolve() else [SHIPPED]


def recipe_files() -> dict[str, Path]:
    """Every recipe's name (as typed: `gemma-tools`) and file, in alphabetical order."""
    found: dict[str, Path] = {}
    for folder in folders():
        for file in folder.glob("*.py"):
            if not file.stem.startswith("_"):
                found.setdefault(file.stem.replace("_", "-"), file)
    return dict(sorted(found.items()))


def summaries() -> dict[str, str]:
    """Each recipe's name and the first line of its docstring, read without running it."""
    lines = {}
    for name, file in recipe_files().items():
        try:
            text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        except SyntaxError as error:
            text = f"cannot be read: {error.msg}, line {error.lineno}"
        except (OSError, ValueError, RecursionError, MemoryError) as error:
            text = f"cannot be read: {error}"
        lines[name] = one_line(text.partition("\n")[0])
    return lines


def load_recipe(name: str) -> type:
    """The `RecipeTrainer` subclass of a recipe.

    Args:
        name: as `sft-recipes list` prints it; dashes and underscores mean the same.

    Raises:
        RecipeError: no such recipe (the nearest name is given), or its module does not hold exactly one recipe.
    """
    files = recipe_files()
    typed = name.replace("_", "-")
    if typed not in files:
        raise RecipeError(f"{unknown_name('recipe', name, files)} Recipes here: {', '.join(files) or 'none'}")
    _open_recipes_package()
    try:
        module = importlib.import_module(f"recipes.{files[typed].stem}")
    except SyntaxError as error:
        raise RecipeError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:  # it is the person's own code
        raise RecipeError(*_raised(files[typed], error)) from error
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__ and "recipe" in vars(value)
    ]
    if len(found) != 1:
        raise RecipeError(f"{files[typed]}: expected one class with `recipe = Recipe(...)`, found {len(found)}")
    return found[0]


def _raised(file: Path, error: BaseException) -> list[str]:
    """What a recipe raised, with the line of its file that did."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    where = f"{file}:{lines[-1]}" if lines else str(file)
    said = error.faults if isinstance(error, RecipeError) else [f"{type(error).__name__}: {error}"]
    return [f"{where}: {fault}" for fault in said]


def _open_recipes_package() -> None:
    """Make `recipes` a package that spans `folders()`, whatever else on this machine has that name."""
    package = sys.modules.get("recipes")
    if package is None:
        package = sys.modules["recipes"] = types.ModuleType("recipes", "Every folder of recipes, the person's own first.")
        package.__path__ = []
    wanted = [str(folder) for folder in folders()]
    package.__path__ = wanted + [path for path in package.__path__ if path not in wanted]
