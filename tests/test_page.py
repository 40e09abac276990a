"""`show`: what a person sees of a training row is the row, in the terminal and on the page."""

import io
import json
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from rich.console import Console

from sft_recipes import RecipeError, build_trainer, screen, supervise
from sft_recipes.rows import IGNORED, paths
from sft_recipes.show.listing import HEAD, TAIL
from sft_recipes.show.page import MOST_ROWS
from sft_recipes.show.view import MODES, Reader, masks, visible

EVIL = "<script>document.title='pwned'</script></script><img src=x onerror=\"document.title='pwned'\">&lt;' }}{{ 7*7 }}"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def conversation(*texts):
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * len(texts), texts, strict=False)]


@pytest.fixture
def prepared(tokenizer):
    """As `prepare` gives it, from texts of user and assistant in turns; its `turns` are those of the first conversation."""

    def make(*conversations, **extra):
        turns = [supervise(conversation(*texts), tokenizer) for texts in conversations]
        rows = [{"input_ids": i, "labels": s, "source": f"f.jsonl:{n}"} | extra for n, t in enumerate(turns, 1) for i, s, _ in paths(t)]
        stop_ids = {turn.completion_ids[-1] for some in turns for turn in some}
        return SimpleNamespace(rows=rows, tokenizer=tokenizer, stop_ids=stop_ids, turns=turns[0])

    return make


class Page(HTMLParser):
    """What a browser would read: the tags, and for each row its tokens, table lines and counts."""

    def __init__(self, file):
        super().__init__()
        self.tags, self.rows, self.into = [], [], None
        self.html = file.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == "section":
            self.rows.append(SimpleNamespace(tokens=[], lines=[], counts={}, heading=""))
        elif tag == "span" and "title" in attrs:
            self.rows[-1].tokens.append([attrs["class"].split(), attrs["title"], ""])
        elif tag == "tr":
            self.rows[-1].lines.append((attrs["class"].split(), []))
        elif tag in ("td", "th"):
            self.rows[-1].lines[-1][1].append({"td": "", "b": "", "s": ""})
        elif tag == "p" and "count" in attrs["class"]:
            self.mode = attrs["class"].split()[1]
            self.rows[-1].counts[self.mode] = ""
        if tag in ("span", "td", "b", "s", "p", "strong", "h2", "th"):
            self.into = tag

    def handle_endtag(self, tag):
        self.into = "p" if tag == "strong" else None

    def handle_data(self, data):
        row = self.rows[-1] if self.rows else None
        if self.into == "span" and row:
            row.tokens[-1][2] += data
        elif self.into in ("td", "b", "s"):
            row.lines[-1][1][-1][self.into] += data
        elif self.into in ("p", "strong") and row:
            row.counts[self.mode] += data
        elif self.into == "h2":
            row.heading += data

    def labels(self, number, mode):
        """A row's labels as its table gives them in one mode; the first is never anyone's target."""
        lines = self.rows[number].lines[1:]
        assert [int(cells[0]["td"]) for _, cells in lines] == list(range(len(lines)))
        return [IGNORED, *(int(cells[4]["b" if mode[0] in classes else "s"]) for classes, cells in lines)][:-1]

    def ids(self, number):
        return [int(cells[1]["td"]) for _, cells in self.rows[number].lines[1:]]


def page(prepared, tmp_path, number=0):
    screen.print_row(prepared, number, tmp_path / "page.html")
    return Page(tmp_path / "page.html")


def terminal(prepared, monkeypatch, number=0, **kwargs):
    console = Console(file=io.StringIO(), width=100, highlight=False, **kwargs)
    monkeypatch.setattr(screen, "out", console)
    screen.print_row(prepared, number, None)
    return console.file.getvalue()


def test_what_is_shown_are_the_rows_of_the_trainer(small_base, chats, tmp_path):
    trainer = build_trainer(
        "gemma-tools",
        **dict(scale="tiny", report_to="none", model=small_base, train_dataset=chats(30), held_out=5, output_dir=tmp_path / "run"),
        **dict(adapter=None, quantization=None, packing="none"),
    )
    shown = page(trainer.prepared, tmp_path, number=2)
    assert len(shown.rows) == MOST_ROWS
    for n in range(len(shown.rows)):
        row = trainer.train_dataset[n + 2]
        assert shown.ids(n) == row["input_ids"] and shown.labels(n, "stop") == row["labels"]
        assert [bool({"s"} & set(classes)) for classes, _, _ in shown.rows[n].tokens] == [label != IGNORED for label in row["labels"]]


def test_each_mode_counts_what_it_trains(prepared, tmp_path):
    given = prepared(("One?", "1, one.", "Two?", "2"), ("Three?", "3"))
    shown, total = page(given, tmp_path), len(given.rows[0]["input_ids"])
    completions = [turn.completion_ids for turn in given.turns]
    expected = {"stop": sum(map(len, completions)), "completion": sum(len(c) - 1 for c in completions), "everything": total - 1}
    for mode, count in expected.items():
        assert shown.rows[0].counts[mode].startswith(f"{count} of {total} tokens carry loss ({count / total:.1%})")
        assert sum(label != IGNORED for label in shown.labels(0, mode)) == count
        assert sum(mode[0] in classes for classes, _, _ in shown.rows[0].tokens) == count
    assert shown.labels(0, "everything") == [IGNORED, *given.rows[0]["input_ids"][1:]]
    checked = [attrs["id"] for tag, attrs in shown.tags if tag == "input" and "checked" in attrs]
    assert checked == ["row0", "stop"]


def test_only_the_stop_tokens_that_end_a_turn_are_missing_from_a_completion():
    ids = [1, 9, 3, 9, 9, 4, 9]
    found = masks(ids, [-100, -100, 3, 9, -100, 4, 9], {9})
    assert found["completion"] == [-100, -100, 3, -100, -100, 4, -100]
    assert masks(ids, [-100, 9, 3, 9, -100, -100, -100], {9})["completion"] == [-100, 9, 3, -100, -100, -100, -100]


def test_nothing_in_the_data_becomes_markup(prepared, tmp_path):
    shown = page(prepared((EVIL, EVIL), source=f'{EVIL}" onerror="x'), tmp_path)
    assert {tag for tag, _ in shown.tags}.isdisjoint({"script", "img"})
    assert not [name for _, attrs in shown.tags for name in attrs if name.startswith("on")]
    assert "".join(text for _, _, text in shown.rows[0].tokens).count(EVIL) == 2
    assert shown.rows[0].heading == f'Row 0, {EVIL}" onerror="x'


def test_the_page_needs_no_network_and_allows_no_script(prepared, tmp_path):
    shown = page(prepared(("a", "b")), tmp_path)
    policy = next(attrs["content"] for tag, attrs in shown.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert not re.search(r"https?:|url\(|@import|src=|href=", shown.html)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_in_a_browser_the_radios_switch_and_the_data_stay_text(prepared, tmp_path):
    """A script of ours drives a copy of the page without its policy, so that a planted script would be free to run."""
    given = prepared((EVIL, EVIL, "more", "x"), ("b", "c"))
    shown = page(given, tmp_path)
    drive = """<script>
      const seen = {}, all = (selector) => [...document.querySelectorAll(selector)], look = () => ({
        count: all('.count').filter(p => p.checkVisibility()).map(p => p.innerText),
        marked: all('#of0 .text span').filter(s => getComputedStyle(s).borderBottomWidth == '2px').length,
        labels: all('#of0 tr').map(r => r.innerText.split('\\t')[4])});
      for (const id of ['stop', 'everything', 'completion', 'row1']) {
        if (id != 'stop') document.getElementById(id).click();
        seen[id] = look();
      }
      document.body.textContent = JSON.stringify({seen, title: document.title}) + '@';
    </script>"""
    free = re.sub(r"<meta http-equiv.*?>", "", shown.html).replace("</body>", drive + "</body>")
    (tmp_path / "drive.html").write_text(free, encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    dom = subprocess.run([*command, (tmp_path / "drive.html").as_uri()], capture_output=True, text=True, timeout=60, check=True).stdout
    found = json.loads(re.search(r"<body>(.*)@", dom, re.S)[1])
    assert found["title"] == "Training rows 0 to 1 of 2"
    for mode in MODES:
        seen, labels = found["seen"][mode], shown.labels(0, mode)
        count = sum(label != IGNORED for label in labels)
        assert seen["marked"] == count and len(seen["count"]) == 1 and seen["count"][0].startswith(f"{count} of {len(labels)} ")
        assert list(map(int, seen["labels"][1:-1])) == labels[1:]
    assert found["seen"]["row1"]["count"][0].startswith(f"1 of {len(given.rows[1]['labels'])} ")


def test_characters_torn_by_the_tokenizer_are_shown_as_bytes(prepared, tokenizer, tmp_path, monkeypatch):
    text = "é 好 😀\ufffd"
    given = prepared((text, text))
    shown = page(given, tmp_path)
    pieces = "".join(text for _, _, text in shown.rows[0].tokens)
    assert "\\xf0" in pieces and pieces.encode().decode("unicode_escape").encode("latin-1").decode().count(text) == 2
    assert {about.split("a piece of ")[1] for _, about, text in shown.rows[0].tokens if "\\x" in text} == {*"é好😀\ufffd"}
    assert f"<pre>{escape(tokenizer.decode(given.rows[0]['input_ids']))}</pre>" in shown.html
    assert terminal(given, monkeypatch).count(text) == 2


def test_tokens_are_read_as_in_mid_text_whatever_the_tokenizer():
    """A decoder in the manner of Llama 2: byte fallback, and the first space of a text stripped."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocab = ["<unk>", "▁a", "▁the", "s", "<0xF0>", "<0x9F>", "<0x0A>"]
    made = Tokenizer(models.BPE({t: i for i, t in enumerate(vocab)}, [], unk_token="<unk>", byte_fallback=True))
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    reader = Reader(PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>"), {3})
    tokens = reader.tokens({"input_ids": [2, 3, 4, 5, 6, 2], "labels": [-100] * 6})
    assert [token.text for token in tokens] == [" the", "s", "\\xf0", "\\x9f", "\n", " the"]
    assert reader.text(tokens[:2]) == " thes"


def test_weights_other_than_one_are_shown(prepared, tmp_path, monkeypatch):
    given = prepared(("a", "b c"))
    row = given.rows[0]
    assert "weight" not in page(given, tmp_path).rows[0].tokens[-1][1]
    row["loss_weights"] = [0.0 if label == IGNORED else 1.0 for label in row["labels"][:-1]] + [0.25]
    shown = page(given, tmp_path).rows[0]
    assert shown.tokens[-1][1].endswith("weight 0.25") and [cells[5]["b"] for _, cells in shown.lines[1:] if cells[5:]] == ["0.25"]
    assert re.search(r"<end_of_turn> +\d+ +0.25\n", terminal(given, monkeypatch))


def test_the_terminal_says_what_of_a_long_row_it_shows(prepared, monkeypatch):
    given = prepared(("x y " * 400, "1 2 " * 150))
    said, total = terminal(given, monkeypatch), len(given.rows[0]["input_ids"])
    shown = int(re.search(r"(\d+) of [\d,]+ positions, --html FILE has all", said)[1])
    listed = re.findall(r"^ +\d+ +\d+  ", said, re.M)
    gaps = [int(n.replace(",", "")) for n in re.findall(r"⋮ ([\d,]+) more", said)]
    assert len(listed) == shown and shown + sum(gaps) == total
    learned = sum(label != IGNORED for label in given.rows[0]["labels"])
    assert [int(n) for n in re.findall(r"⋮ (\d+) learned", said)] == [0, learned - HEAD - TAIL]
    assert len(re.findall(r"^… [\d,]+ tokens …$", said, re.M)) == 2


def test_the_terminal_marks_what_is_learned_with_and_without_colour(prepared, monkeypatch):
    given = prepared(("Hi.", "a b"))
    assert "⟦a b<end_of_turn>⟧" in terminal(given, monkeypatch)
    coloured = terminal(given, monkeypatch, force_terminal=True, color_system="truecolor")
    assert "⟦" not in coloured and re.search(r"\x1b\[38;2;0;0;0;48;2;143;220;143ma b\x1b", coloured)


def test_nothing_in_the_data_acts_on_the_terminal(prepared, monkeypatch):
    said = terminal(prepared(("\x1b[31mred\r\a [bold]\tx\u202e", "a\nb")), monkeypatch)
    assert "\\x1b[31mred\\r\\x07 [bold]⇥" in said and "\\u202e" in said and "a↵\nb" in said
    assert visible(" a\n\\n\u200d") == "·a↵\\n\u200d"


def test_a_file_that_cannot_be_written_is_one_line(prepared, tmp_path):
    with pytest.raises(RecipeError, match=r"^--html .*absent.page\.html: No such file or directory$"):
        screen.print_row(prepared(("a", "b")), 0, tmp_path / "absent" / "page.html")
