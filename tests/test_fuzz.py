"""Two hundred of the mutated cases that `make fuzz` runs in thousands; and that the fuzzer itself notices what it looks for."""

import json

import fuzz
import fuzz_commands
import fuzz_data
import mutated_data
import pytest

from sft_recipes.data import reading

FILES, COMMANDS = 150, 50


@pytest.fixture(scope="module", autouse=True)
def one_tokenizer():
    """Loaded once: preparation loads it anew for each file."""
    from sft_recipes import prepare
    from sft_recipes.config import hush

    hush()
    loaded, load = {}, prepare.load_tokenizer
    prepare.load_tokenizer = lambda recipe: loaded.get(recipe.model) or loaded.setdefault(recipe.model, load(recipe))
    yield
    prepare.load_tokenizer = load


@pytest.mark.parametrize("kind", ["files", "commands"])
def test_no_traceback_and_no_silent_loss(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if kind == "commands":
        monkeypatch.setattr("sft_recipes.cli._train", None)  # put back afterwards
    counts, failures = fuzz.several((kind, 0, {"files": FILES, "commands": COMMANDS}[kind], "test"))
    assert not failures, "\n".join(failures)
    assert counts.total() == {"files": FILES, "commands": COMMANDS}[kind] and len(counts) > 1


def test_a_case_is_its_seed(tmp_path):
    contents = [mutated_data.file_of(case, tmp_path).read_bytes() for case in ("a", "b", "a")]
    assert contents[0] == contents[2] != contents[1]


def test_a_reader_that_loses_a_row_is_noticed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Say {i}.", "completion": f"{i}"}) + "\n" for i in range(5)))
    assert fuzz_data.judged(file) == "loaded"
    whole = reading.read
    monkeypatch.setattr(reading, "read", lambda *args: (row for i, row in enumerate(whole(*args)) if i != 3))
    with pytest.raises(fuzz_data.Broken, match=r"lost in silence: \['data\.jsonl:4'\]"):
        fuzz_data.judged(file)


def test_a_command_that_raises_is_noticed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sft_recipes.config.resolve", lambda *args, **fields: 1 / 0)
    monkeypatch.setattr("sft_recipes.cli._train", None)
    with pytest.raises(fuzz_commands.Broken, match="ZeroDivisionError"):
        fuzz_commands._ran(["check", "gemma-tools"])
