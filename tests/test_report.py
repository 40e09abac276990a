"""`report.html`: what a run folder holds is what the page shows, whoever wrote it, and nothing in it can act on the page."""

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from html.parser import HTMLParser

import pytest
from folders import PROOF, REPLIES, make, sample, scores
from typer.testing import CliRunner

from sft_recipes import RecipeError
from sft_recipes.cli import app
from sft_recipes.report import curves, plots, questions, write_compared, write_report
from sft_recipes.report.reading import read
from sft_recipes.run import Run

EVIL = "</style></title><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">&lt;' }}{{ 7*7 }}"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")


class Page(HTMLParser):
    """What a browser would read: the tags, the text, the cells of each table, the tokens of the rows."""

    def __init__(self, file):
        super().__init__()
        self.tags, self.text, self.tables, self.cell, self.titles = [], "", [], None, {}
        self.html = file.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.cell = tag

    def handle_endtag(self, tag):
        self.cell = None if tag == self.cell else self.cell

    def handle_data(self, data):
        self.text += data
        if self.cell:
            self.tables[-1][-1][-1] += data

    def with_class(self, name):
        return [attrs for _, attrs in self.tags if name in attrs.get("class", "").split()]

    def lines(self):
        return {row[0]: row[1:] for table in self.tables for row in table}


@pytest.fixture
def page(tmp_path):
    return lambda *args, **kwargs: Page(write_report(make(tmp_path / "run", *args, **kwargs)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return Page(write_report(make(tmp_path_factory.mktemp("finished") / "run", logged=True)))


def test_what_the_folder_holds_is_on_the_page(finished):
    found = finished
    lines = found.lines()
    assert lines["held-out"] == ["before", "kept, step 4", "last step, 6"]
    assert lines["exact"] == ["0.400", "0.600", "0.550"] and lines["length"] == ["12.3"] * 3
    assert lines["conversations"] == ["1,000", "5"] and lines["supervised tokens"] == ["2,345", "2,345"]
    assert lines["loss"] == ["2.000", "2.125"] and lines["accuracy"] == ["0.500", "0.400"]
    for said in (
        "Step 4 was kept.",
        "No overfitting.",
        "It forgot a little.",
        "25,000 supervised tokens, 20.0% of all",
        "t.jsonl:9",
        "2.0 h",
    ):
        assert said in found.text
    for said in ("m/base at abc123", "5ba5e" * 12, "7ra1" * 16, "e7a1" * 16, "hub/data:cfg:train, t.jsonl", "200 split off by content"):
        assert said in found.text
    assert "LoRA of rank 16, alpha 32, on q_proj; the base frozen in 4 bits (NF4)" in found.text
    assert "first (tiny scale, exact 0.500), from its adapter" in found.text
    assert "mean KL 1.5e-12" in found.text and "Merged into the original base: mean KL 1.1e-02" in found.text
    assert "sft-recipes train adder --scale tiny --learning_rate 1e-4 --from 'a b' --packing true" in found.text
    assert "torch 2.13.0, trl 1.16.0" in found.text and not found.with_class("refused")


def test_generations_stand_beside_the_reference_and_are_sorted_by_what_training_did(finished):
    found = finished
    articles = [set(attrs["class"].split()) - {"question"} for attrs in found.with_class("question")]
    assert articles == [{"right"}, {"right", "gained"}, {"wrong", "lost"}, {"wrong"}, {"right", "gained"}]
    radios = [attrs["id"] for tag, attrs in found.tags if tag == "input"]
    assert radios == ["all", "right", "wrong", "gained", "lost"]
    first = found.text[found.text.index("f.jsonl:1, message 1") : found.text.index("f.jsonl:2, message 1")]
    order = ["What is in", "reference", '{"name": "look", "arguments": {"where": "é"}}', "before said", "after said", "end said", "served"]
    assert [first.index(text) for text in order] == sorted(first.index(text) for text in order)
    assert found.text.count("cut at the length limit") == sum(not right for some in REPLIES.values() for right in some)


@pytest.mark.parametrize("primary", ["eval_loss", "length"])
def test_where_nothing_is_right_or_wrong_there_is_no_filter(page, primary):
    found = page(metrics={"primary": primary})
    assert len(found.with_class("question")) == 5 and not [tag for tag, _ in found.tags if tag == "input"]


def test_of_many_questions_all_kinds_are_shown_and_texts_are_cut(page, tmp_path):
    many = [sample(f"f:{i}", stage, i >= 3 or stage == "before", "x" * 2000) for i in range(500) for stage in ("before", "after")]
    found = page(samples=many)
    assert len(found.with_class("question")) == questions.MOST and len(found.with_class("lost")) == 3
    assert "200 of 500 questions are shown: 197 of 497 right, 3 of 3 wrong" in found.text and "run/samples.jsonl" in found.text
    assert "characters left out" in found.text and (tmp_path / "run" / "report.html").stat().st_size < 2_500_000
    assert questions.spread([("a",)] * 10, 4) == [0, 2, 5, 7] and questions.spread([]) == []


def test_an_example_row_marks_what_carries_loss_and_shows_every_change(finished):
    found = finished
    tokens = [attrs for tag, attrs in found.tags if tag == "span" and "tabindex" in attrs]
    assert [attrs["title"] for attrs in tokens if attrs.get("class") == "s"] == ["id 900", "id 901, weight 0.5", "id 902"]
    assert len(tokens) == 303 and "… 600 tokens …" in found.text and "3 of 903 tokens carry loss" in found.text


def test_nothing_that_is_told_becomes_markup(page, tmp_path):
    told = f"{EVIL}\x1b[31m\u202e\u2028"
    fault = {**PROOF, "faults": [told], "first_difference": {"prompt": told, "trained": told, "deployed": told}}
    arm = {"steps": [0, 6], "scores": [0.1, 0.2], "before": scores(0.1, 1.0), "after": scores(0.2, 1.0)}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ablation.json").write_text(json.dumps({"primary": "exact", "arms": {f"{told}\ud800": arm, "b": arm}}))
    lines = [sample(f"{EVIL}f:1", stage, 0, told) for stage in ("before", "after")]
    metrics = {"merge": fault, "after": {told: 1.0, **scores(1.0, 1.0)}}
    found = page(told, lines, {"overrides": {"data": told}}, metrics)
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "img", "iframe", "object", "link"})
    assert not [name for _, attrs in found.tags for name in attrs if name.startswith("on")]
    assert [tag for tag, _ in found.tags].count("style") == 1 and "49" not in re.findall(r"\}\}(\S*)", found.text)
    assert found.text.count(EVIL) > 300 and "\\x1b[31m\\u202e" in found.text
    assert not re.search("[\x1b\u202e\u2028\ud800]", found.html)


def test_the_page_needs_no_network_and_allows_no_script(finished):
    found = finished
    policy = next(attrs["content"] for _, attrs in found.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert not re.search(r"https?:|@import|src=|url\((?!#)", found.html)
    assert all(attrs[key].startswith("#") for _, attrs in found.tags for key in ("href", "xlink:href") if key in attrs)


def test_a_folder_from_before_these_keys_still_renders(tmp_path):
    merge = {"kl": 7.8e-14, "max_kl": 3.9e-11, "tokens": 9922, "generations": 64, "generations_equal": True, "stops": 1.0}
    before = {"exact": 0.4, "stops": 1.0, "eval_loss": 2.0}
    newer = ("best", "curves", "retain", "replay", "end", "from", "base")
    run = make(tmp_path / "run", metrics={"merge": merge, "before": before, "after": {**before, "exact": 0.7}}, drop=newer)
    (run.folder / "rows.jsonl").unlink()
    found = Page(write_report(run))
    assert found.lines()["held-out"] == ["before", "after"] and found.lines()["exact"] == ["0.400", "0.700"]
    assert "Deployed, and proven" in found.text and "mean KL 7.8e-14" in found.text and "kept" not in found.text


def test_a_run_that_was_refused_says_so_with_every_fault(page):
    found = page(metrics={"merge": {"faults": ["another stop token", "mean KL 1"]}})
    assert found.with_class("refused") and "Refused" in found.text and "proven to be the model that was trained." not in found.text
    assert "another stop token" in found.text and "mean KL 1" in found.text
    assert "make merge RUN=" in page(metrics={"merge": {}}).text


def test_an_unfinished_run_is_told_as_far_as_its_newest_checkpoint_remembers(tmp_path):
    run = make(tmp_path / "run")
    for name in ("metrics.json", "samples.jsonl", "history.jsonl", "rows.jsonl"):
        (run.folder / name).unlink()
    assert "Not finished" in Page(write_report(run)).text
    for step in (2, 10):
        (run.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
        entries = [{"step": step, "loss": 1.0}, {"step": step, "eval_loss": 2.0, "eval_exact": 0.5}]
        (run.checkpoints / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"log_history": entries}))
    found = Page(write_report(run))
    assert "newest checkpoint is of step 10" in found.text and [tag for tag, _ in found.tags].count("figure") == 2


def test_lines_hold_what_was_logged_and_what_the_run_says_of_itself(tmp_path):
    told = read(make(tmp_path / "run", logged=True))
    assert dict(curves.losses(told)[1].points) == {0: 2.0, 2: 3.0, 4: 1.25, 6: 1.125}
    assert [line.name for line in curves.scores(told)] == ["exact", "stops"] and [line.name for line in curves.manner(told)] == ["repeats"]
    assert dict(curves.scores(told)[0].points) == {0: 0.4, 2: 0.2, 4: 0.6, 6: 0.55}
    assert dict(curves.retained(told)[0].points) == {0: 2.0, 2: 2.02, 4: 2.125, 6: 2.06}


def test_a_plot_leaves_out_what_is_not_finite_and_says_so():
    lines = [curves.Line("a", [(0, 1.0), (1, float("nan")), (2, float("inf")), (3, 5.0)])]
    (plot,) = plots.over_steps("t", lines)
    assert plot.remark == "2 values are not finite, and not drawn" and "var(--c0)" in plot.svg and "#0072b2" not in plot.svg
    assert plots.over_steps("t", [curves.Line("a", [(0, float("nan"))])]) == []
    spiky = [(i, 100.0 if i == 7_777 else 1.0 + i % 2) for i in range(10_000)]
    assert len(plots.thinned(spiky)) <= plots.MOST and (7_777, 100.0) in plots.thinned(spiky)


def test_two_runs_side_by_side(tmp_path):
    one, two = make(tmp_path / "one"), make(tmp_path / "two", metrics={"after": scores(0.9, 1.5)}, recipe={"scale": "full"})
    samples = [sample(source, "after", source == "f.jsonl:1") for source in REPLIES]
    two.write_lines("samples.jsonl", samples)
    found = Page(write_compared([one, two], tmp_path / "new" / "side.html"))
    assert found.lines()["held-out"] == ["one", "two"] and found.lines()["exact"] == ["0.600", "0.900"]
    assert found.lines()["scale"] == ["tiny", "full"] and "learning_rate" not in found.lines() and "output_dir" not in found.lines()
    kinds = [set(attrs["class"].split()) - {"question"} for attrs in found.with_class("question")]
    assert kinds == [{"right"}, {"differ"}, {"wrong"}, {"wrong"}, {"differ"}]
    assert "different held-out conversations" not in found.text
    other = make(tmp_path / "other", recipe={"data": {"train": "x", "held_out": "another"}})
    assert "different held-out conversations" in Page(write_compared([one, other], tmp_path / "side.html")).text
    with pytest.raises(RecipeError, match="named twice"):
        write_compared([one, one], tmp_path / "side.html")
    (two.folder / "metrics.json").unlink()
    with pytest.raises(RecipeError, match=r"two holds no metrics\.json: the run has not finished"):
        write_compared([one, two], tmp_path / "side.html")


def test_the_verb_writes_the_page_and_says_where(tmp_path):
    one, two = make(tmp_path / "one"), make(tmp_path / "two")
    runner = CliRunner()
    said = runner.invoke(app, ["report", str(one.folder), "--json"]).stdout
    assert json.loads(said)["report"] == str(one.folder / "report.html") and (one.folder / "report.html").is_file()
    said = runner.invoke(app, ["report", str(one.folder)]).stdout
    assert "report.html" in said.replace("\n", "")
    both = [str(one.folder), str(two.folder)]
    assert list(json.loads(runner.invoke(app, ["report", *both, "--json"]).stdout)) == ["one", "two"]
    assert (one.folder / "compared.html").is_file()
    said = runner.invoke(app, ["report", *both, "--html", str(tmp_path / "c.html")])
    assert "0.600" in said.stdout and (tmp_path / "c.html").is_file()
    assert "--html is for several runs" in runner.invoke(app, ["report", both[0], "--html", "x"]).stderr
    (one.folder / "metrics.json").unlink()
    done = runner.invoke(app, ["report", both[0]])
    assert done.exit_code == 1 and "the run has not finished" in done.stderr and "report.html" in done.stderr


def test_a_line_separator_in_a_reply_is_no_end_of_a_line(tmp_path):
    run = Run(tmp_path)
    run.write_lines("x.jsonl", [{"reply": "a\u2028b\x85c"}])
    assert run.read_lines("x.jsonl") == [{"reply": "a\u2028b\x85c"}]


class Browser:
    """A headless browser, driven over WebDriver."""

    def __init__(self, port):
        self.port, self.session = port, ""
        arguments = ["--headless", "--no-sandbox", "--disable-gpu"]
        options = {"goog:chromeOptions": {"binary": CHROMIUM, "args": arguments}}
        self.session = f"/session/{self.call('', {'capabilities': {'alwaysMatch': options}}, '/session')['sessionId']}"

    def call(self, path, body, start=None):
        data = json.dumps(body).encode()
        address = f"http://127.0.0.1:{self.port}{start or self.session}{path}"
        with urllib.request.urlopen(urllib.request.Request(address, data, {"Content-Type": "application/json"}), timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, file, width):
        metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics})
        self.call("/url", {"url": file.as_uri()})

    def run(self, script):
        return self.call("/execute/sync", {"script": f"return {script}", "args": []})

    def click(self, selector):
        element = self.call("/element", {"using": "css selector", "value": selector})
        self.call(f"/element/{next(iter(element.values()))}/click", {})

    def shown(self):
        seen = "[...document.querySelectorAll('.question')].filter(q => q.getClientRects().length)"
        return self.run(f"{seen}.map(q => q.querySelector('h3').textContent)")


@pytest.fixture
def browser():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen([CHROMEDRIVER, f"--port={port}"], stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        found = Browser(port)
        yield found
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}{found.session}", method="DELETE"), timeout=60).close()
    finally:
        driver.terminate()
        driver.wait()


@pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="no chromium with its chromedriver is installed")
def test_in_a_browser_filters_work_nothing_planted_runs_and_a_phone_has_room(browser, tmp_path):
    """A copy without the page's policy, so that a planted script would be free to run, were it one."""
    samples = [sample(source, stage, right[i]) for i, stage in enumerate(("before", "after")) for source, right in REPLIES.items()]
    run = make(tmp_path / "run", samples=samples)
    file = write_report(run)
    browser.open(file, 1200)
    seen = {"all": browser.shown()}
    for kind in ("right", "wrong", "gained", "lost"):
        browser.click(f"label:has(#{kind})")
        seen[kind] = [heading.split(",")[0].removeprefix("f.jsonl:") for heading in browser.shown()]
    assert len(seen.pop("all")) == 5 and seen == {"right": ["1", "2", "5"], "wrong": ["3", "4"], "gained": ["2", "5"], "lost": ["3"]}
    assert browser.run("[...document.querySelectorAll('figure svg')].every(s => s.getBoundingClientRect().height > 80)")

    word = EVIL + "unbroken" * 40
    evil = make(tmp_path / "<img src=x onerror=document.title=1>", word, metrics={"after": {f"{EVIL}score": 1.0, **scores(0.6, 1.0)}})
    both = {f"{word}adder": write_report(evil), f"{evil.folder.name}, run": write_compared([evil, run], tmp_path / "both.html")}
    for title, file in both.items():
        free = tmp_path / f"free-{file.name}"
        free.write_text(re.sub(r"<meta http-equiv.*?>", "", file.read_text()))
        browser.open(free, 390)
        assert browser.run("document.title") == title
        assert browser.run("document.querySelectorAll('script, img').length") == 0
        assert browser.run("document.documentElement.scrollWidth") == 390
