"""Talking in the terminal: a model that says what it is told to, on the real tokenizer, with the keyboard replaced."""

import json
from types import SimpleNamespace

import pytest
import torch

from sft_recipes import RecipeError
from sft_recipes.revisit import chat as chatting
from sft_recipes.weights import load_tokenizer


class Told:
    """Says these replies, one after the other, as `generate` does: the prompt to the streamer, then a token at a time."""

    training, device = False, torch.device("cpu")

    def __init__(self, replies):
        self.replies, self.prompts = list(replies), []

    def eval(self):
        return self

    def train(self, mode):
        return self

    def generate(self, input_ids, attention_mask, generation_config, streamer, synced_gpus, stopping_criteria):
        self.prompts.append(input_ids[0].tolist())
        streamer.put(input_ids)
        reply = torch.tensor(self.replies.pop(0))
        for token in reply:
            streamer.put(token[None])
        streamer.end()
        return torch.cat([input_ids, reply[None]], dim=1)


@pytest.fixture
def talk(gemma_tools, monkeypatch, capsys, tmp_path):
    """Chats with `replies` and the `lines` a person types; gives what was printed, and the prompts as text."""
    recipe = gemma_tools.recipe.at("tiny")
    tokenizer = load_tokenizer(recipe)
    stop = tokenizer.convert_tokens_to_ids("<end_of_turn>")

    def talk(replies, lines, tools=None):
        model = Told([*tokenizer(reply, add_special_tokens=False)["input_ids"], stop] for reply in replies)
        monkeypatch.setattr(chatting, "reopen", lambda name: (None, SimpleNamespace(recipe=recipe)))
        monkeypatch.setattr(chatting, "_merged", lambda run: (model, tokenizer, {stop}))
        left = list(lines)

        def typed(prompt):
            print(prompt + (left[0] if left else ""))
            if not left:
                raise EOFError
            return left.pop(0)

        monkeypatch.setattr("builtins.input", typed)
        file = tmp_path / "tools.json"
        file.write_text(json.dumps(tools or []))
        chatting.chat("run", file)
        return capsys.readouterr().out, [tokenizer.decode(prompt) for prompt in model.prompts]

    return talk


def test_content_as_it_comes_and_an_empty_line_ends(talk):
    said, prompts = talk(["Hello.\nAnd you?", "Fine."], ["Hi", "How are you?", "", "never"])
    assert said == "you> Hi\nHello.\nAnd you?\nyou> How are you?\nFine.\nyou> \n"
    before, _, asked = prompts[1].partition("<start_of_turn>model\nHello.\nAnd you?<end_of_turn>\n")
    assert before and asked == "<start_of_turn>user\nHow are you?<end_of_turn>\n<start_of_turn>model\n"


def test_each_call_of_a_reply_is_asked_for_its_result(talk):
    calls = [f'{{"name": "f", "arguments": {{"a": {n}}}}}' for n in (1, 2)]
    tool = {"name": "f", "description": "Does f."}
    said, prompts = talk(["One moment.\n" + "\n".join(calls), "Both done."], ["Go", "r1", "r2"], [tool])
    assert said == f"you> Go\nOne moment.\ncall> {calls[0]}\ncall> {calls[1]}\nresult> r1\nresult> r2\nBoth done.\nyou> \n"
    assert json.dumps(tool) in prompts[0]
    assert prompts[1].endswith("Tool results:\nr1\nr2<end_of_turn>\n<start_of_turn>model\n") and calls[1] in prompts[1]


def test_a_run_without_the_folder_that_is_asked_for(tmp_path):
    run = chatting.Run(tmp_path)
    for opened, words in ((lambda: chatting._merged(run), "holds no merged/"), (lambda: chatting._adapter(run, None), "holds no adapter/")):
        with pytest.raises(RecipeError, match=words):
            opened()


@pytest.mark.parametrize("text", ["nothing", "{", '[{"description": "x"}]', "[5]"])
def test_a_file_without_tool_schemas_is_named(tmp_path, text):
    file = tmp_path / "tools.json"
    file.write_text(text)
    with pytest.raises(RecipeError, match=r"tools\.json: "):
        chatting._schemas(file)
