"""Teach Gemma 3 4B to call your own tools.

Learns when to call a tool, which one, and with what arguments, from conversations with real calls and results. QLoRA: the
language model is frozen in 4 bits, a LoRA of rank 16 learns on every linear layer of it; the vision tower stays untouched.

Hardware: one CUDA GPU with 24 GB (not measured by us yet); without CUDA, the tiny scale on 2 CPU cores.
Command:  make train RECIPE=gemma-tools                     your own data: DATA=conversations.jsonl
Result:   tiny scale: tool_call_exact from 0.02 to 0.98 on 200 held-out conversations, in 5 minutes on 2 cores.

Gemma 3's template knows no tools. `gemma3_tools` is the same template with them, and a response template that reads a call back;
both go with the tokenizer, so training, evaluation and any server render and read alike.
"""

import ast
import json
import re
from collections.abc import Iterator
from itertools import islice

from peft import LoraConfig
from transformers import BitsAndBytesConfig

from sft_recipes import TINY, Recipe, RecipeError, RecipeTrainer, Source, scores
from sft_recipes.tiny.corpus import documents

LINEAR = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
HERMES = "NousResearch/hermes-function-calling-v1"


def nf4(compute_dtype: str) -> BitsAndBytesConfig:
    """4-bit NormalFloat with double quantisation (QLoRA, arXiv 2305.14314), for the language model only."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=["model.vision_tower", "model.multi_modal_projector", "lm_head"],  # matched from the start
    )


def pretraining_texts() -> Iterator[dict]:
    """What the tiny base was pre-trained on, or rather what it was not: the same kinds of text from another seed."""
    return ({"text": text} for text in islice(documents(seed=2), 400))


class GemmaTools(RecipeTrainer):
    recipe = Recipe(
        model="google/gemma-3-4b-it",
        data=(Source(HERMES, "func_calling"), Source(HERMES, "func_calling_singleturn")),
        held_out=200,
        quantization=nf4("bfloat16"),
        chat_template="gemma3_tools",
        adapter=LoraConfig(r=16, lora_alpha=32, target_modules=rf".*language_model.*\.({LINEAR})", task_type="CAUSAL_LM"),
        primary="tool_call_exact",
        config=dict(
            num_train_epochs=2,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            learning_rate=2e-4,
            warmup_steps=0.03,
            neftune_noise_alpha=5,
            max_length=4096,
            eval_strategy="steps",
            eval_steps=0.2,
        ),
        tiny=dict(
            model=f"{TINY}/gemma3",
            data=f"{TINY}/gemma_tools.train.jsonl",
            held_out=f"{TINY}/gemma_tools.held_out.jsonl",
            retain=pretraining_texts,
            quantization=nf4("float32"),
            dtype="float32",
            max_new_tokens=96,
            config=dict(
                num_train_epochs=2,
                per_device_train_batch_size=8,
                gradient_accumulation_steps=1,
                learning_rate=6e-3,
                max_length=1024,
            ),
        ),
    )

    @staticmethod
    def conversation(row: dict) -> dict:
        """A row in any form that `sft_recipes` reads; Hermes's, which has calls between tags, is made one."""
        return from_hermes(row) if TAG.search(str(row.get("conversations"))) else row

    @staticmethod
    def score(reply: dict, expected: dict) -> dict[str, float]:
        return {
            "tool_call_exact": scores.tool_call_exact(reply, expected),
            "tool_call_valid": scores.tool_call_valid(reply, expected),
        }


# Hermes function calling: ShareGPT turns, in which the tools, the calls and the results stand as literals between tags.

TAG = re.compile("<(tools|tool_call|tool_response)>")


def from_hermes(row: dict) -> dict:
    """The same row with what stands between tags as `tools`, as `tool_calls`, and as a turn for each result.

    Raises:
        RecipeError: a tag whose text is neither a Python literal nor JSON; nothing is guessed.
    """
    tools: list = []
    turns = [new for number, turn in enumerate(row["conversations"]) for new in _hermes_turn(number, turn, tools)]
    return {**row, "conversations": turns, "tools": tools or row.get("tools")}


def _hermes_turn(number: int, turn: dict, tools: list) -> list[dict]:
    """What becomes of a turn: none where it only declares tools (the chat template writes them), several for several results."""
    role, text = turn.get("from"), turn.get("value") or ""
    if role == "system" and (declared := [literal(found, number) for found in _tagged("tools", text) if found.strip()]):
        tools += [tool for found in declared for tool in (found if isinstance(found, list) else [found])]
        return []
    if role in ("gpt", "assistant") and (calls := _tagged("tool_call", text)):
        content = re.sub(r"<tool_call>.*?</tool_call>", "", text, flags=re.DOTALL).strip()
        return [{**turn, "value": content, "tool_calls": [literal(call, number) for call in calls]}]
    if role == "tool" and (results := _tagged("tool_response", text)):
        return [{**turn, "value": result.strip()} for result in results]
    return [turn]


def _tagged(tag: str, text: str) -> list[str]:
    return re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)


def literal(text: str, number: int):
    """A Python literal or JSON, read without evaluating anything."""
    for read in (json.loads, ast.literal_eval):
        try:
            return json.loads(json.dumps(read(text.strip())))  # tuples become lists, a set is a fault
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
    raise RecipeError(f"message {number}: neither JSON nor a Python literal: {text.strip()[:80]!r}")
