"""What stands on a command line beside a verb's own options, as fields; and how an error of a verb is told."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

from .public import public
from .recipe import RecipeError
from .stopping import CODE, Stopped

# Anything else on the line is a field of the recipe or of trl.SFTConfig: --learning_rate 1e-4 --data mine.jsonl
FIELDS = {"allow_extra_args": True, "ignore_unknown_options": True}
NAMED_HERE = {"from": "start_from"}  # no name that Python allows


def one_line_errors(verb: Callable[..., None]) -> Callable[..., None]:
    """Print each fault of a `RecipeError` on standard error and exit 1, without a traceback."""

    @wraps(verb)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            verb(*args, **kwargs)
        except RecipeError as error:
            for fault in error.faults:
                typer.echo(f"error: {public(fault)}", err=True)
            raise typer.Exit(1) from None
        except Stopped as stopped:
            typer.echo(f"stopped: {stopped}; the same command goes on from there", err=True)
            raise typer.Exit(CODE) from None

    return run


def fields(context: typer.Context) -> dict[str, str]:
    """`--name value`, `--name=value` and a bare `--name` (true) from what the verb itself did not take."""
    found: dict[str, str] = {}
    words = list(context.args)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise RecipeError(f"unexpected argument '{word}'; fields are written --name value")
        name, equals, value = word[2:].partition("=")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        found[NAMED_HERE.get(name, name).replace("-", "_")] = value
    return found
