"""The tiny scale's model and data are what they claim to be."""

import json
import random

import pytest
from transformers import AutoProcessor

from sft_recipes import TINY
from sft_recipes.data.forms import normalized
from sft_recipes.preflight import duplicates
from sft_recipes.tiny import conversations, corpus
from sft_recipes.tiny.base import build_model, build_processor
from sft_recipes.tiny.words import Words, is_held_out


def rows(part):
    return [json.loads(line) for line in (TINY / f"gemma_tools.{part}.jsonl").read_text().splitlines()]


def test_the_files_are_what_the_generator_gives():
    for part, held_out in (("train", False), ("held_out", True)):
        words = Words(random.Random(f"gemma-tools {part}"), held_out)
        assert rows(part)[:20] == [conversations.conversation(words) for _ in range(20)]


def test_counts_and_kinds():
    train, held_out = rows("train"), rows("held_out")
    assert (len(train), len(held_out)) == (2000, 200)
    calls = [len(row["messages"][1].get("tool_calls", [])) for row in train]
    assert {0, 1, 2} == set(calls) and 0.1 < calls.count(0) / 2000 < 0.2 and 0.15 < calls.count(2) / 2000 < 0.25
    assert {len(row["tools"]) for row in train} == {1, 2, 3}


def test_the_base_has_the_processor_that_a_server_loads(tmp_path):
    processor = AutoProcessor.from_pretrained(TINY / "gemma3")
    made = build_processor(processor.tokenizer, build_model(0))
    made.save_pretrained(tmp_path)
    for name in ("processor_config.json", "tokenizer_config.json"):
        written, embedded = (json.loads((folder / name).read_text()) for folder in (tmp_path, TINY / "gemma3"))
        assert {key: written.get(key) for key in embedded} == embedded
    assert (processor.image_seq_length, processor.tokenizer.image_token) == (1, "<image_soft_token>")


def open_values(rows):
    """Every argument value that is not one of an enumeration."""
    found = set()
    for row in rows:
        schemas = {tool["function"]["name"]: tool["function"]["parameters"]["properties"] for tool in row["tools"]}
        for message in row["messages"]:
            for call in message.get("tool_calls", []):
                properties = schemas[call["function"]["name"]]
                found |= {str(v) for k, v in call["function"]["arguments"].items() if "enum" not in properties[k]}
    return found


def test_held_out_values_never_occur_in_training():
    held_out, train = open_values(rows("held_out")), open_values(rows("train"))
    assert len(held_out) > 200 and not held_out & train
    text = (TINY / "gemma_tools.train.jsonl").read_text()
    assert not [value for value in held_out if len(value) > 4 and f'"{value}"' in text]


def test_no_conversation_copies_another_not_even_nearly():
    train, held_out = ([normalized(row, f"{part}:{i}") for i, row in enumerate(rows(part))] for part in ("train", "held_out"))
    found = duplicates.find(train, held_out)
    assert [found.train.exact, found.held_out.exact, found.held_out.near] == [[], [], []]
    assert len(found.train.near) < 0.01 * len(train)
    said = [json.dumps(row["messages"]) for row in train + held_out]
    assert len(set(said)) == len(said)


def test_every_value_belongs_to_its_half():
    assert all(is_held_out(value) for value in open_values(rows("held_out")) if " " not in value)


def test_the_corpus_holds_no_role_and_none_of_the_recipes_tools():
    stream = corpus.documents(1)
    text = "\n".join(next(stream) for _ in range(3000))
    for tool in conversations.TOOLS:
        assert tool.schema["function"]["name"] not in text and tool.schema["function"]["description"] not in text
    for words in ("<start_of_turn>user", "<start_of_turn>model", "You can call these tools", "Tool results:"):
        assert words not in text


def test_the_base_is_small_multimodal_and_was_trained():
    record = json.loads((TINY / "gemma3" / "base.json").read_text())
    config = json.loads((TINY / "gemma3" / "config.json").read_text())
    assert (TINY / "gemma3" / "model.safetensors").stat().st_size <= 6e6
    assert config["architectures"] == ["Gemma3ForConditionalGeneration"]
    assert 1.5e6 < record["parameters"] < 2.5e6
    assert record["loss_last_50"] < record["loss_first_50"] / 3
    assert not (TINY / "gemma3" / "chat_template.jinja").exists()


@pytest.mark.parametrize("seed", [0])
def test_pretraining_learns_from_the_first_steps(seed):
    """The script itself, a few steps of it: the loss falls."""
    from sft_recipes.tiny import base, pretraining

    tokenizer = base.train_tokenizer(seed)
    assert tokenizer("x").input_ids[0] == tokenizer.bos_token_id and len(tokenizer) == base.VOCABULARY
    batch = next(pretraining.blocks(tokenizer, corpus.documents(seed), 2, base.BLOCK))
    losses = pretraining.pretrain(base.build_model(seed), [batch[:, :64]] * 8, steps=8)
    assert losses[-1] < losses[0] - 0.5
