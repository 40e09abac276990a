"""The notebook, from top to bottom: as it is committed, and executed with its parameters cell shortened to a few steps.

As a program, this executes it whole and keeps what it shows, without what only the machine at hand has to say.
"""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from sft_recipes import TINY

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "gemma_tools.ipynb"
GREEN = "background-color: #8fdc8f"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after a run in an empty folder, on a few conversations."""
    folder = tmp_path_factory.mktemp("notebook")
    for name, count in (("train", 48), ("held_out", 6)):
        lines = (TINY / f"gemma_tools.{name}.jsonl").read_text().splitlines(keepends=True)[:count]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    short = dict(data="train.jsonl", held_out="held_out.jsonl", max_steps=3, max_new_tokens=16)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source = re.sub(r"OVERRIDES = \{\}", f"OVERRIDES = {short!r}", parameters.source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    return folder, notebook


def text_of(cell):
    """All that a cell shows, as plain text."""
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.get("outputs", []))


def shown_by(notebook, code):
    """The outputs of the one cell that holds this code."""
    (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and code in cell.source)
    return cell.outputs, text_of(cell)


def test_it_runs_from_top_to_bottom_and_every_stage_shows_something(executed):
    folder, notebook = executed
    silent = [cell.source for cell in notebook.cells if cell.cell_type == "code" and not cell.outputs]
    assert len(silent) == 2 and "OVERRIDES" in silent[0] and "CUDA_VISIBLE_DEVICES" in silent[1], silent
    metrics = json.loads((folder / "runs" / "notebook" / "metrics.json").read_text())
    assert f"KL {metrics['merge']['kl']:.1e}" in shown_by(notebook, "proof[")[1]
    assert all(name in shown_by(notebook, "pd.DataFrame({stage")[1] for name in ("tool_call_exact", "eval_loss", "before", "after"))
    assert metrics["best"]["said"] in shown_by(notebook, '["best"]["said"]')[1]


def test_the_mask_is_coloured_in_the_page(executed):
    outputs, text = shown_by(executed[1], "screen.print_row")
    assert any(GREEN in output.data.get("text/html", "") for output in outputs)
    assert "After the causal shift" in text


def test_the_report_is_shown_escaped_inside_a_frame(executed):
    (output,), _ = shown_by(executed[1], "srcdoc")
    assert output.data["text/html"].count("<iframe") == 1 and "&lt;html" in output.data["text/html"]


def test_what_is_committed_shows_a_whole_run_and_nothing_of_the_machine_it_ran_on():
    text = NOTEBOOK.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert len(text) < 300_000
    assert not re.search(r"/(home|root|tmp|usr|Users|work)/|[A-Z]:\\\\", text)
    errors = [output for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "error"]
    assert not errors and all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert shown_by(notebook, "print(call)")[1].startswith('{"name": "get_weather", "arguments": {"city": "Velmora"}}')
    assert shown_by(notebook, "messages += [")[1].startswith("It is rainy in Velmora, 12 degrees.")


def keep(notebook):
    """As it is committed: without warnings, times, the folders of the machine, and the report, which is in the run folder."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            if "<iframe" in output.get("data", {}).get("text/html", ""):
                output.data["text/html"] = re.sub("<iframe.*</iframe>", "", output.data["text/html"], flags=re.DOTALL)
    NOTEBOOK.write_text(nbformat.writes(notebook).replace(f"{TINY}/", "") + "\n", encoding="utf-8")


if __name__ == "__main__":
    whole = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(whole, timeout=3600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    keep(whole)
