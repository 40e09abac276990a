"""A Hub that refuses, is in trouble, or breaks off: one line for a person, for models, tokenizers and datasets alike.

A local server plays the Hub; `huggingface_hub` and `datasets` are the real ones, but for their waiting.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from sft_recipes import RecipeError, Source
from sft_recipes.data.reading import load
from sft_recipes.weights.loading import own_tokenizer, unweighted

COMMIT = "a" * 40
TOKEN = "hf_" + "Planted" * 5


class Hub:
    """Answers as it is told; counts what it was asked."""

    def __init__(self):
        self.answers, self.asked, self.tokens = [], [], set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub.asked.append((self.command, self.path))
                hub.tokens.add(self.headers.get("authorization"))
                answer = hub.answers.pop(0) if len(hub.answers) > 1 else hub.answers[0]
                answer(self)

            do_HEAD = do_POST = do_GET

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


def status(code, **headers):
    def answer(request):
        request.send_response(code)
        for name, value in {**headers, "Content-Length": "0"}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()

    return answer


def file(content, announced=None):
    def answer(request):
        request.send_response(200)
        length = len(content) if announced is None else announced
        for name, value in {"ETag": '"e"', "X-Repo-Commit": COMMIT, "Content-Length": str(length)}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)

    return answer


@pytest.fixture(scope="module")
def server():
    hub = Hub()
    yield hub
    hub.server.shutdown()


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    import datasets
    import huggingface_hub
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http

    server.waits = []
    at_once = SimpleNamespace(sleep=server.waits.append, time=lambda: 0.0)
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", at_once)
    values = {"ENDPOINT": server.url, "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}"}
    for name, value in {**values, "HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(tmp_path)}.items():
        monkeypatch.setattr(constants, name, value)
    for name, value in {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": False}.items():
        monkeypatch.setattr(datasets.config, name, value)
    monkeypatch.setattr(huggingface_hub.hf_api, "ENDPOINT", server.url, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.asked.clear()
    return server


LOADERS = {
    "model": lambda: unweighted("org/name"),
    "tokenizer": lambda: own_tokenizer("org/name"),
    "dataset": lambda: load([Source("org/name")], lambda row: row),
}
BAD_TOKEN = status(401, X_Error_Message="Invalid credentials in Authorization header")


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (BAD_TOKEN, "the Hub does not accept your token (401)"),
        (status(403), "the Hub forbids it (403): your token may not read this"),
        (status(403, X_Error_Code="GatedRepo"), "is gated: accept its licence at {url}, then log in with `hf auth login`"),
        (status(401, X_Error_Code="GatedRepo"), "is gated: accept its licence at {url}, then log in with `hf auth login`"),
        (status(404, X_Error_Code="RepoNotFound"), "is neither a folder here nor on the Hub at {url}; check its name"),
        (status(429, Retry_After="7"), "the Hub answers 429, too many requests, and still does after waiting"),
        (status(503), "the Hub is in trouble (it answers 503), and still is after several tries"),
    ],
    ids=["401", "403", "gated-403", "gated-401", "404", "429", "503"],
)
def test_every_answer_is_one_line(hub, kind, answer, said):
    hub.answers = [answer]
    with pytest.raises(RecipeError) as caught:
        LOADERS[kind]()
    (line,) = caught.value.faults
    page = f"{hub.url}/{'datasets/' if kind == 'dataset' else ''}org/name"
    assert line.startswith(f"{'dataset' if kind == 'dataset' else 'model'} 'org/name'") and said.format(url=page) in line
    assert TOKEN not in line and f"Bearer {TOKEN}" in hub.tokens  # the server was given it, the person's screen is not


def test_upstream_waits_as_long_as_it_is_told_and_goes_on(hub):
    """The border: where this fails, huggingface_hub no longer tries again by itself, and something here must."""
    hub.answers = [status(429, Retry_After="7"), status(503), status(429, X_Error_Code="RepoNotFound")]
    with pytest.raises(RecipeError):
        own_tokenizer("org/name")
    assert 8.0 in hub.waits and len(hub.asked) > 5


def test_a_download_that_breaks_off_is_told(hub):
    hub.answers = [file(b"{", announced=1000)]
    with pytest.raises(RecipeError) as caught:
        unweighted("org/name")
    assert caught.value.faults == [
        "model 'org/name': the connection to the Hub broke off in the middle; the same command goes on where it was"
    ]


def test_a_hub_that_is_not_there_is_told(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}")
    with pytest.raises(RecipeError, match=r"^model 'org/name': the Hub cannot be reached at http://127\.0\.0\.1:9; check the network"):
        own_tokenizer("org/name")


def test_offline_names_the_switch_that_is_set(hub, monkeypatch):
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    hub.answers = [status(500)]
    for name, work in LOADERS.items():
        with pytest.raises(RecipeError, match="it is not in the cache, and HF_HUB_OFFLINE is set; unset it"):
            work()
        assert hub.asked == [], name


def test_a_model_that_wants_its_own_code_run_is_refused_by_name(tmp_path):
    config = {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.Tokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(theirs))
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for work in (unweighted, own_tokenizer):
        with pytest.raises(
            RecipeError, match=r"model '.*' cannot be loaded: it needs `trust_remote_code`: Python code from its repository"
        ):
            work(str(tmp_path))
    assert not (tmp_path / "ran").exists()
