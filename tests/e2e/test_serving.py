"""The deployed folder behind a server that runs nothing of ours, `transformers serve`, asked with the `openai` client."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from pathlib import Path

import pytest
from openai import OpenAI
from transformers import AutoTokenizer

README = Path(__file__).parents[2] / "README.md"
LIMIT = 96  # tokens a reply may have
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Get the weather in a city.", "parameters": SCHEMA}}]
QUESTION = {"role": "user", "content": "What is the weather in Velmora?"}
RESULT = '{"temperature": 12, "sky": "rainy"}'
ANSWER = "It is rainy in Velmora, 12 degrees."


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def serving(folder, log, seconds=180):
    """The server's address, while it runs."""
    address = f"http://127.0.0.1:{free_port()}"
    words = [Path(sys.executable).with_name("transformers"), "serve", folder, "--host", "127.0.0.1", "--port", address.rpartition(":")[2]]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as out:
        server = subprocess.Popen([str(word) for word in words], stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        limit = time.monotonic() + seconds
        while not healthy(address):
            assert server.poll() is None and time.monotonic() < limit, f"the server is not up:\n{log.read_text()[-5000:]}"
            time.sleep(0.3)
        yield address
    finally:
        server.kill()
        server.wait()


def healthy(address):
    with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
        return answer.status == 200
    return False


@pytest.fixture(scope="module")
def server(main_job, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with serving(main_job[0] / "merged", log) as address:
        yield address, log


@pytest.fixture
def ask(main_job, server):
    """Asks the server; what it logged is shown where a test fails."""
    client = OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0, timeout=120)

    def ask(*messages, **options):
        options = {"model": str(main_job[0] / "merged"), "temperature": 0, "max_tokens": LIMIT, **options}
        return client.chat.completions.create(messages=messages, **options)

    yield ask
    print(server[1].read_text()[-5000:])


def test_a_call_and_the_answer_to_its_result(ask, main_job):
    reply = ask(QUESTION, tools=TOOLS)
    (call,) = reply.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Velmora"})
    assert reply.choices[0].finish_reason == "tool_calls" and not reply.choices[0].message.content
    assert reply.usage.completion_tokens < LIMIT / 2  # by itself
    tokenizer = AutoTokenizer.from_pretrained(main_job[0] / "merged")
    served = tokenizer.apply_chat_template([QUESTION], tools=TOOLS, add_generation_prompt=True, return_dict=False)
    assert reply.usage.prompt_tokens == len(served)

    result = {"role": "tool", "tool_call_id": call.id, "content": RESULT}
    answer = ask(QUESTION, reply.choices[0].message.model_dump(exclude_none=True), result, tools=TOOLS)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (ANSWER, "stop")
    assert answer.usage.completion_tokens < LIMIT / 2 and not answer.choices[0].message.tool_calls


def test_a_talk_that_needs_no_tool_stops_by_itself(ask):
    reply = ask({"role": "user", "content": "Good morning from Velmora."}, tools=TOOLS)
    assert reply.choices[0].finish_reason == "stop" and reply.usage.completion_tokens < LIMIT
    assert reply.choices[0].message.content and "<end_of_turn>" not in reply.choices[0].message.content
    alone = ask({"role": "user", "content": "Good morning from Velmora."})  # as it never was in training: what it says is its own affair
    assert alone.choices[0].message.content and "<end_of_turn>" not in alone.choices[0].message.content


def test_the_same_in_pieces(ask):
    pieces = [chunk.choices[0] for chunk in ask(QUESTION, tools=TOOLS, stream=True)]
    (call,) = [call for piece in pieces for call in piece.delta.tool_calls or []]
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Velmora"})
    assert pieces[-1].finish_reason == "tool_calls" and not any(piece.delta.content for piece in pieces)

    made = {"role": "assistant", "tool_calls": [{"id": call.id, "type": "function", "function": call.function.model_dump()}]}
    result = {"role": "tool", "tool_call_id": call.id, "content": RESULT}
    pieces = [chunk.choices[0] for chunk in ask(QUESTION, made, result, tools=TOOLS, stream=True)]
    said = [piece.delta.content for piece in pieces if piece.delta.content]
    assert "".join(said) == ANSWER and len(said) > 5 and pieces[-1].finish_reason == "stop"


def test_the_lines_of_the_readme(server, main_job):
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL) if "OpenAI" in block]
    code = code.replace("http://localhost:8000", server[0]).replace("runs/gemma-tools/merged", str(main_job[0] / "merged"))
    with redirect_stdout(StringIO()) as said:
        exec(code, {})
    assert said.getvalue() == 'get_weather {"city": "Velmora"}\n'
