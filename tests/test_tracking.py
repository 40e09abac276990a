"""What trackers get, read back: wandb's offline run from its bytes. Online only where a key is at hand, found without asking for one."""

import json
import struct
import sys
from types import SimpleNamespace

import pytest
import wandb
from steps import trainer_of
from transformers import TrainerCallback

from sft_recipes import tracking
from sft_recipes.evaluate import Question, Sample
from sft_recipes.run import Run
from sft_recipes.tracking import ROWS, logged_in, tabled

SECRET = "hf_" + "Planted" * 5
CALL = {"type": "function", "function": {"name": "f", "arguments": {"city": "Oslo"}}}


def tracked(folder, report_to, **config):
    """A trainer of a small model that has a run folder and two replies, one to a question with markup, trained and reported."""
    trainer = trainer_of("full-llama", folder / "checkpoints", report_to=report_to, max_steps=2, run_name="small", **config)
    run = trainer.run = Run(folder)
    texts = (("<b>Weather?</b>", {"role": "assistant", "tool_calls": [CALL]}), ("And now?", {"role": "assistant", "content": "Rain."}))
    trainer.samples = [
        Sample(
            Question(f"a.jsonl:{i}", 1, asked, [5], expected),
            trainer.processing_class("no", add_special_tokens=False)["input_ids"],
            {},
            {"exact": 0.5 * i},
        )
        for i, (asked, expected) in enumerate(texts)
    ]
    overrides = {"hub_token": SECRET, "learning_rate": 1e-3}
    run.write(
        "recipe.json", {"recipe": "small", "overrides": overrides, "resolved": {"max_new_tokens": 9}, "config": {}, "data": {"train": "ab"}}
    )
    trainer.tracked = trainer.continued_from = None
    with tracking.started(trainer):
        trainer.evaluate()
        trainer.train()
        trainer.log({"eval_retain_loss": 2.5})
        lines = [{"stage": "after", "step": 1, **sample.as_dict(trainer.processing_class)} for sample in trainer.samples]
        run.write_lines("samples.jsonl", lines)
        run.write("metrics.json", {"primary": "exact", "before": {"exact": 0.0}, "after": {"exact": 0.25}})
        (folder / "report.html").write_text("<html></html>")
        tracking.attach(trainer, folder / "report.html")
    return trainer


def records(file):
    """Of an offline run: LevelDB's log format, blocks of 32 KiB with pieces of protobuf messages, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2 as pb

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield pb.Record.FromString(whole)
            whole = b""


def test_wandb_gets_scores_generations_recipe_and_report_and_no_secret(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sft-recipes", "train", "small", "--hub_token", SECRET])
    trainer = tracked(tmp_path, "wandb", hub_token=SECRET)
    wandb.teardown()  # its service has written everything
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    found = list(records(next(folder.glob("*.wandb"))))

    config = {item.key: json.loads(item.value_json) for record in found for item in record.run.config.update}
    assert config["recipe"] == {
        "recipe": "small",
        "overrides": {"learning_rate": 1e-3},
        "resolved": {"max_new_tokens": 9},
        "data": {"train": "ab"},
    }
    history = [{item.key or item.nested_key[0]: item.value_json for item in r.history.item} for r in found if r.HasField("history")]
    keys = {key for entry in history for key in entry}
    assert {"eval/loss", "eval/retain_loss", "train/loss", "train/grad_norm", "train/learning_rate", "train/global_step"} <= keys
    assert sum("generations" in entry for entry in history) == 3  # before training, after its one epoch, and of the model that is kept
    summary = {item.key or item.nested_key[0]: item.value_json for r in found for item in r.summary.update}
    assert json.loads(summary["primary"]) == "exact" and "after" in summary
    (report,) = [r.artifact for r in found if r.HasField("artifact") and r.artifact.type == "report"]
    assert [content.path for content in report.manifest.contents] == ["report.html"]

    tables = [json.loads(file.read_text()) for file in sorted(folder.glob("files/media/table/*"))]
    assert all(table["columns"] == ["step", "stage", "source", "asked", "reply", "reference", "exact"] for table in tables)
    call = json.dumps(CALL["function"])
    rows = {table["data"][0][1]: table["data"] for table in tables}
    assert rows["before"][0] == [0, "before", "a.jsonl:0", "<b>Weather?</b>", "no", call, 0]
    assert rows["after"][1] == [1, "after", "a.jsonl:1", "And now?", "no", "Rain.", 0.5]
    assert not [file for file in (tmp_path / "wandb").rglob("*") if file.is_file() and b"Planted" in file.read_bytes()]

    with tracking._wandb(trainer):  # of a run that was continued
        pass
    wandb.teardown()
    (again,) = set((tmp_path / "wandb").glob("offline-run-*")) - {folder}
    ids = [{r.run.run_id for r in records(next(place.glob("*.wandb"))) if r.HasField("run")} for place in (folder, again)]
    assert ids[0] == ids[1] == {trainer.tracked}


def test_a_table_has_a_hundred_rows_at_most_and_a_column_for_each_score():
    lines = [{"step": 1, "reply": f"{i}", "expected": {}, "scores": {"exact": 1.0} if i % 2 else {"length": 2.0}} for i in range(1001)]
    columns, rows = tabled(lines)
    assert len(rows) <= ROWS and [row[4] for row in rows[:3]] == ["0", "11", "22"] and columns[-2:] == ["length", "exact"]
    assert rows[0][-2:] == [2.0, None] and tabled([])[1] == []


def test_tensorboard_writes_into_the_run_folder(tmp_path):
    class TensorBoardCallback(TrainerCallback):
        logging_dir = None

    callback = TensorBoardCallback()
    handler = SimpleNamespace(callbacks=[callback])
    trainer = SimpleNamespace(
        args=SimpleNamespace(report_to=["tensorboard"]),
        callback_handler=handler,
        run=Run(tmp_path),
        is_world_process_zero=lambda: True,
        add_callback=handler.callbacks.append,
        remove_callback=handler.callbacks.remove,
    )
    with tracking.started(trainer):
        assert callback.logging_dir == str(tmp_path / "tensorboard") and len(handler.callbacks) == 2
    assert handler.callbacks == [callback]


def test_other_processes_track_nothing():
    trainer = SimpleNamespace(is_world_process_zero=lambda: False, args=SimpleNamespace(report_to=["wandb", "trackio"]))
    with tracking.started(trainer):
        tracking.attach(trainer, None)


def test_a_real_tensorboard(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    tracked(tmp_path / "run", "tensorboard")
    assert list((tmp_path / "run" / "tensorboard").glob("events.*")) and {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_real_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    trackio = pytest.importorskip("trackio")
    for number in (1, 2):  # a second training of the same name is a run of its own
        tracked(tmp_path / f"run{number}", "trackio", project="recipes")
    runs = trackio.Api().runs("recipes")
    assert len(list(runs)) == 2


def test_a_key_in_the_environment(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert logged_in()


def test_a_key_in_netrc_for_the_right_host(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not logged_in()
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine api.wandb.ai login user password k\n")
    netrc.chmod(0o600)
    assert logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com")
    assert not logged_in()


def test_an_unreadable_netrc_is_not_a_login(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine api.wandb.ai bogus\n")
    assert not logged_in()
