"""A spot machine's warning, as each cloud gives it: a local server answers as theirs do."""

import contextlib
import json
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sft_recipes import RecipeError, build_trainer, checkpoints
from sft_recipes.spot import ASKED, CLOUDS, watched
from sft_recipes.stopping import SIGNALS, Stop, Stopped

EVENT = {"EventId": "1", "EventType": "Preempt", "Resources": ["vm_0"], "NotBefore": "Mon, 19 Sep 2016 18:29:47 GMT"}


class Server(ThreadingHTTPServer):
    """Refuses, as the real ones do, what comes without their header; `goes` is whether it announces the end."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.goes, self.broken, self.seen, self.events = False, False, [], [EVENT]

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_PUT(self):
        known = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self.say(*((200, "a token") if known else (400, "")))

    def do_GET(self):
        self.server.seen.append(self.path)
        if self.server.broken:
            self.say(503, "")
        elif self.path == "/latest/meta-data/spot/instance-action":
            there = json.dumps({"action": "terminate", "time": "2017-09-18T08:22:00Z"})
            self.say(
                *((401, "") if self.headers["X-aws-ec2-metadata-token"] != "a token" else (200, there) if self.server.goes else (404, ""))
            )
        elif self.path == "/computeMetadata/v1/instance/preempted":
            self.say(*((403, "") if self.headers["Metadata-Flavor"] != "Google" else (200, str(self.server.goes).upper())))
        elif self.headers["Metadata"] != "true" or "api-version=" not in self.path:
            self.say(400, "")
        elif self.path.startswith("/metadata/scheduledevents?"):
            self.say(200, json.dumps({"DocumentIncarnation": 1, "Events": self.server.events if self.server.goes else []}))
        elif self.path.startswith("/metadata/instance/compute/name?") and self.path.endswith("format=text"):
            self.say(200, "vm_0")
        else:
            self.say(404, "")

    def say(self, code, text):
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def server():
    with Server() as found:
        threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
        yield found
        found.shutdown()


@pytest.fixture(autouse=True)
def signals_as_before():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    assert before == {number: signal.getsignal(number) for number in SIGNALS}


def until(condition):
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


@contextlib.contextmanager
def running(cloud, server, monkeypatch):
    monkeypatch.setenv(ASKED, cloud)
    stop = Stop()
    with stop.listening(), watched(stop, 0.01, server.address):
        yield stop


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_notice_stops_the_run_as_a_signal_does(server, monkeypatch, capsys, cloud):
    """Nothing happens before it; the signal that then follows does not end the process, and the one after would."""
    with running(cloud, server, monkeypatch) as stop:
        until(lambda: len(server.seen) > 2)
        assert not stop.asked
        server.goes = True
        until(lambda: stop.asked)
        assert stop.asked == f"a notice of {cloud}" and not stop._at_once
        monkeypatch.setattr("sft_recipes.stopping.TOGETHER", 0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: stop.asked == "SIGTERM")
        assert not stop._foretold
    assert f"{cloud} takes this machine away: " in capsys.readouterr().err


def test_where_nothing_has_to_be_finished_it_ends_at_once(server, monkeypatch):
    with running("gcp", server, monkeypatch) as stop, pytest.raises(Stopped, match="a notice of gcp"), stop.at_once():
        server.goes = True
        time.sleep(10)


def test_azures_events_of_other_machines_and_pauses_are_none_of_ours(server, monkeypatch):
    server.goes, server.events = True, [{**EVENT, "Resources": ["vm_1"]}, {**EVENT, "EventType": "Freeze"}]
    assert CLOUDS["azure"](server.address) == ""
    server.events = [*server.events, {**EVENT, "EventType": "Redeploy", "NotBefore": ""}]
    assert CLOUDS["azure"](server.address) == "Redeploy"


@pytest.mark.parametrize("cloud", CLOUDS)
def test_an_address_that_does_not_answer_is_told_once_and_asked_again(server, monkeypatch, capsys, cloud):
    server.broken = True
    with running(cloud, server, monkeypatch) as stop:
        until(lambda: len(server.seen) > 3)
        assert not stop.asked
        server.broken, server.goes = False, True
        until(lambda: stop.asked)
    assert capsys.readouterr().err.count(f"warning: {ASKED}={cloud}: {server.address} does not say whether this machine stays") == 1


def test_nothing_is_asked_unless_the_environment_names_a_cloud_and_nothing_after_the_run(server, monkeypatch):
    monkeypatch.delenv(ASKED, raising=False)
    with watched(Stop(), 0.01, server.address):
        assert "spot" not in [thread.name for thread in threading.enumerate()]
    with running("aws", server, monkeypatch):
        until(lambda: server.seen)
    until(lambda: "spot" not in [thread.name for thread in threading.enumerate()])
    monkeypatch.setenv(ASKED, "gpc")
    with pytest.raises(RecipeError, match=rf"{ASKED}: unknown cloud 'gpc', did you mean 'gcp'\?"), watched(Stop()):
        pass


def test_a_run_outside_of_the_main_thread_reads_it_too(server, monkeypatch):
    """Where no signal can be listened for; none is sent then, which would end the process."""
    server.goes = True
    found = []

    def work():
        with running("gcp", server, monkeypatch) as stop:
            until(lambda: stop.asked)
            found.append(stop.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["a notice of gcp"]


def test_a_run_saves_its_step_and_leaves(server, monkeypatch, small_base, chats, tmp_path):
    """And goes on later: the checkpoint is a good one."""
    monkeypatch.setenv(ASKED, "gcp")
    monkeypatch.setattr("sft_recipes.spot.watched", lambda stop: watched(stop, 0.05, server.address))
    options = dict(max_steps=100_000, eval_strategy="no", save_strategy="no", held_out=2, max_new_tokens=4, retain=None, report_to="none")
    trainer = build_trainer("gemma-tools", "tiny", model=small_base, train_dataset=chats(20), output_dir=tmp_path, **options)
    taken = trainer.training_step

    def step(*args, **kwargs):
        server.goes = True
        return taken(*args, **kwargs)

    trainer.training_step = step
    with pytest.raises(Stopped, match=r"a notice of gcp: step \d+ is saved in .*checkpoint-\d+"):
        trainer.train()
    assert checkpoints.newest(tmp_path / "checkpoints").checkpoint.name == f"checkpoint-{trainer.state.global_step}"
