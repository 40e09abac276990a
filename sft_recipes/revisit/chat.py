"""Talk to a finished run in the terminal: the reply as it is generated, and a result asked for each call it makes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.generation.streamers import BaseStreamer

from .. import evaluate as judging
from ..data.messages import unified_tools
from ..export.folder import declared_stops
from ..recipe import RecipeError
from ..replies import Listener, parse
from ..run import Run
from ..weights import load_adapter, load_base, load_model, refuse_another
from .opening import reopen


def chat(name: str, tools: Path | None = None, adapter: bool = False) -> None:
    """Read a line, answer it, until an empty line; a tool call asks for its result.

    Args:
        name: the run.
        tools: a JSON file with a list of tool schemas.
        adapter: talk to the adapter on the base it was trained on, instead of the deployed folder.

    Raises:
        RecipeError: no such run, or it has no such folder; or the file holds no tool schemas.
    """
    run, resolved = reopen(name)
    schemas = _schemas(tools)
    model, tokenizer, stops = _adapter(run, resolved.recipe) if adapter else _merged(run)
    speaker = Speaker(model, tokenizer, stops, schemas, resolved.recipe.max_new_tokens, resolved.recipe.template_kwargs)
    messages: list[dict[str, Any]] = []
    pending: list[dict[str, Any]] = []  # calls whose results are still to come
    while line := _ask("result> " if pending else "you> "):
        if pending:
            call = pending.pop(0)
            messages.append({"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"], "content": line})
        else:
            messages.append({"role": "user", "content": line})
        if not pending:
            messages.append(speaker.answer(messages))
            pending = list(messages[-1].get("tool_calls", []))


class Speaker:
    """A model that answers a conversation, greedily as in evaluation, and prints what it says while it says it.

    Args:
        model: loaded.
        tokenizer: with the chat template, and perhaps the response template, of the folder that is talked to.
        stops: ids at which a reply ends.
        tools: schemas on offer.
        max_new_tokens: limit of a reply.
        template_kwargs: passed to the chat template.
    """

    def __init__(self, model: Any, tokenizer: Any, stops: set[int], tools: Sequence[dict], max_new_tokens: int, template_kwargs: Any):
        self.model, self.tokenizer, self.stops, self.tools = model, tokenizer, stops, list(tools)
        self.max_new_tokens, self.template_kwargs = max_new_tokens, template_kwargs

    def answer(self, messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The next message, printed; its calls are numbered through the conversation, as in data without ids."""
        prompt = self.tokenizer.apply_chat_template(
            list(messages), tools=self.tools or None, add_generation_prompt=True, return_dict=False, **self.template_kwargs
        )
        printer = Printer(Listener(self.tokenizer, prompt, self.tools, self.stops))
        pad = self.tokenizer.pad_token_id
        ids = judging.generate(self.model, [prompt], self.stops, pad, self.max_new_tokens, streamer=printer)[0]
        message = parse(self.tokenizer, prompt, ids, self.tools, self.stops)
        if "tool_calls" in message:
            made = sum(len(m.get("tool_calls", [])) for m in messages)
            message["tool_calls"] = [{**call, "id": f"call_{made + i}"} for i, call in enumerate(message["tool_calls"])]
        return message


class Printer(BaseStreamer):
    """Prints a reply: content as it comes, a call as a line of its own when it is whole."""

    def __init__(self, listener: Listener):
        self.listener, self.prompted, self.in_line = listener, False, False

    def put(self, value: Any) -> None:
        """Takes the prompt's ids `(1, length)` first, then each new one `(1,)`."""
        if self.prompted:
            for token in value.tolist():
                self._show(self.listener.hear(token))
        self.prompted = True

    def end(self) -> None:
        self._show(self.listener.end())
        self._break()

    def _show(self, pieces: Any) -> None:
        for piece in pieces:
            if isinstance(piece, str):
                print(piece, end="", flush=True)
                self.in_line = not piece.endswith("\n") if piece else self.in_line
            else:
                self._break()
                print(f"call> {json.dumps(piece, ensure_ascii=False)}", flush=True)

    def _break(self) -> None:
        if self.in_line:
            print(flush=True)
            self.in_line = False


def _ask(prompt: str) -> str:
    try:
        return input(prompt).strip()
    except EOFError:
        return ""


def _schemas(file: Path | None) -> list[dict]:
    if file is None:
        return []
    faults: list[str] = []
    try:
        schemas = unified_tools(json.loads(file.read_text(encoding="utf-8")), faults)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{file}: not a JSON list of tool schemas: {error}") from error
    if faults:
        raise RecipeError(*(f"{file}: {fault}" for fault in faults))
    return schemas


def _merged(run: Run) -> tuple[Any, Any, set[int]]:
    """The deployed folder: model, tokenizer, and the stop tokens that it declares."""
    if not run.merged.is_dir():
        raise RecipeError(f"{run.folder} holds no merged/: the run has not finished; --adapter talks to its adapter, where it has one")
    model: Any = load_model(str(run.merged), "auto")
    return model, AutoTokenizer.from_pretrained(run.merged), set(declared_stops(model.generation_config))


def _adapter(run: Run, recipe: Any) -> tuple[Any, Any, set[int]]:
    """The adapter on its base, and the stop tokens of its training beside those of the base."""
    if not run.adapter.is_dir():
        raise RecipeError(f"{run.folder} holds no adapter/; without --adapter the deployed folder answers")
    refuse_another(run.adapter, recipe)
    tokenizer = AutoTokenizer.from_pretrained(run.adapter)
    model: Any = load_adapter(load_base(recipe, tokenizer), run.adapter)
    learned = tokenizer.convert_tokens_to_ids(run.read("metrics.json")["stop_tokens"])
    return model, tokenizer, {*declared_stops(model.generation_config), *learned}
