"""The runs that a recipe compares: they differ in what their arm says and in nothing else, and their numbers are put side by side."""

import json

import pytest
from typer.testing import CliRunner

from sft_recipes import RecipeError, ablation, screen
from sft_recipes.cli import app
from sft_recipes.config import resolve
from sft_recipes.run import Run
from sft_recipes.scores import MANNER

RECIPE = '''"""Compare."""

from peft import LoraConfig

from sft_recipes import Recipe, RecipeTrainer


def chats(first, last):
    return [{{"prompt": f"Say {{i}}.", "completion": f"{{i}}"}} for i in range(first, last)]


def train_rows():
    return chats(0, 24)


def same_rows():
    return train_rows()


def other_rows():
    return chats(50, 74)


def held_out_rows():
    return chats(100, 104)


class Compare(RecipeTrainer):
    recipe = Recipe(
        model={model!r},
        data=train_rows,
        held_out=held_out_rows,
        adapter=LoraConfig(r=2, target_modules=["q_proj"]),
        dtype="float32",
        primary="exact",
        max_new_tokens=4,
        config=dict(
            max_steps=2, learning_rate=1e-2, per_device_train_batch_size=4, eval_strategy="steps", eval_steps=1, report_to="none"
        ),
        ablation={ablation},
    )

    @staticmethod
    def score(reply, expected):
        right = float(reply["content"] == expected["content"])
        return {{"exact": right, f"exact_{{len(expected['content'])}}_digits": right}}
'''


@pytest.fixture
def declare(own_recipes, small_base):
    """Writes the recipe with an ablation and gives its name."""

    def write(text):
        (own_recipes / "compare.py").write_text(RECIPE.format(model=small_base, ablation=text))
        return "compare"

    return write


def run(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def differing(one, other):
    """The fields in which two dataclasses differ."""
    return {name for name in one.__dataclass_fields__ if getattr(one, name) != getattr(other, name)}


# --- which runs


def test_arms_differ_in_their_own_fields_and_their_place_alone(declare):
    resolved = resolve(declare('{"as it is": {}, "other": {"data": other_rows, "learning_rate": 1e-3}}'), seed="7")
    arms = ablation.arms(resolved)
    assert list(arms) == ["as it is", "other"] and arms["as it is"] is resolved
    other = arms["other"]
    assert differing(resolved.recipe, other.recipe) == {"data", "config"} and other.recipe.data.__name__ == "other_rows"
    # transformers puts the logging folder inside the output folder
    assert differing(resolved.config, other.config) - {"logging_dir"} == {"learning_rate", "output_dir", "run_name"}
    assert (other.config.output_dir, other.config.run_name, other.config.seed) == ("runs/compare/other", "compare/other", 7)
    assert resolved.config.output_dir == "runs/compare" and resolved.config.learning_rate == 1e-2


def test_an_arm_is_recorded_by_its_name_and_found_again_by_it(declare):
    other = ablation.arms(resolve(declare('{"a": {}, "b": {"data": other_rows}}'), max_steps="1"))["b"]
    assert other.overrides == {"arm": "b", "max_steps": "1"}
    again = resolve(other.name, other.scale, **json.loads(json.dumps(other.overrides)))
    assert not differing(again.recipe, other.recipe) and again.config.output_dir == other.config.output_dir


def test_an_arms_run_moves_with_the_recipes(declare):
    arms = ablation.arms(resolve(declare('{"a": {}, "b": {"mask": "completion"}}'), output_dir="elsewhere"))
    assert [arm.config.output_dir for arm in arms.values()] == ["elsewhere", "elsewhere/b"]


@pytest.mark.parametrize("changed", [{"learning_rate": "1e-4"}, {"arm": "b"}, {"arm": "a"}])
def test_what_the_person_decides_is_trained_alone(declare, changed):
    resolved = resolve(declare('{"a": {}, "b": {"learning_rate": 1e-3}}'), **changed)
    assert ablation.arms(resolved) == {"compare": resolved}
    assert resolved.config.learning_rate == {"1e-4": 1e-4, "b": 1e-3, "a": 1e-2}[next(iter(changed.values()))]
    assert resolved.config.output_dir == ("runs/compare/b" if changed.get("arm") == "b" else "runs/compare")


@pytest.mark.parametrize("text", ["{}", '{"alone": {}}'])
def test_without_a_second_arm_there_is_nothing_to_compare(declare, text):
    resolved = resolve(declare(text))
    assert ablation.arms(resolved) == {"compare": resolved}


def test_faults_of_arms_name_recipe_and_arm_all_together(declare):
    name = declare('{"a": {"seed": 1}, "b": {"maks": "everything", "learning_rat": 1}, "merged": {}, "../up": {}}')
    with pytest.raises(RecipeError) as caught:
        resolve(name, arm="bb")
    where = "its run is a folder of that name inside the recipe's, where it cannot be; choose another name"
    assert caught.value.faults == [
        "unknown arm 'bb', did you mean 'b'?",
        "recipe 'compare', arm 'a': the first arm is the recipe itself and differs in nothing; put an empty one in front",
        "recipe 'compare', arm 'b': unknown field 'maks', did you mean 'mask'?",
        "recipe 'compare', arm 'b': unknown field 'learning_rat', did you mean 'learning_rate'?",
        f"recipe 'compare', arm 'merged': {where}",
        f"recipe 'compare', arm '../up': {where}",
    ]


def test_values_of_arms_that_do_not_hold_are_reported_together(declare):
    resolved = resolve(declare('{"a": {}, "b": {"mask": "everything"}, "c": {"learning_rate": -1}}'))
    with pytest.raises(RecipeError) as caught:
        ablation.arms(resolved)
    assert [fault.partition(" is ")[0] for fault in caught.value.faults] == [
        "recipe 'compare', arm 'b': mask",
        "recipe 'compare', arm 'c': learning_rate",
    ]


def test_every_arm_is_checked_before_the_first_is_trained(declare, tmp_path):
    result = run("train", declare('{"a": {}, "b": {"data": "absent.jsonl"}, "c": {"held_out": "gone.jsonl"}}'))
    assert result.exit_code == 1 and not (tmp_path / "runs").exists()
    faults = [line for line in result.stdout.splitlines() if line.startswith("fault: ")]
    assert len(faults) == 2 and "absent.jsonl" in faults[0] and "gone.jsonl" in faults[1]
    assert result.stdout.index("arm 1 of 3: a") < result.stdout.index("arm 2 of 3: b") < result.stdout.index(faults[0])


# --- what is still to be trained


def test_resuming_passes_over_finished_arms(declare, tmp_path):
    arms = ablation.arms(resolve(declare('{"a": {}, "b": {"seed": 1}, "c": {"seed": 2}}')))
    first, second, third = (Run(tmp_path / arm.config.output_dir) for arm in arms.values())
    assert ablation.pending(arms, False) == {"a": False, "b": False, "c": False}
    assert ablation.pending(arms, True) == {"a": True, "b": False, "c": False}  # the trainer says that there is nothing to resume
    first.write("recipe.json", {"overrides": {}})
    first.write("metrics.json", {"merge": {}})
    first.merged.mkdir()
    second.write("recipe.json", {})
    assert ablation.pending(arms, True) == {"a": True, "b": True, "c": False}  # the proof is missing
    first.write("metrics.json", {"merge": {"kl": 0.0}})
    assert ablation.pending(arms, True) == {"b": True, "c": False}
    first.write("recipe.json", {"overrides": {"max_steps": "1"}})
    assert ablation.pending(arms, True) == {"a": True, "b": True, "c": False}
    alone = {"compare": arms["a"]}
    assert ablation.pending(alone, True) == {"compare": True}
    assert not third.folder.exists()


# --- the numbers


def write_run(folder, scores, after, primary="exact", steps=None, before=0.0):
    """A run folder as the trainer leaves it: scores at the steps of its evaluations, the last one's among them."""
    steps = steps or [10 * (i + 1) for i in range(len(scores))]
    logged = primary if primary.startswith("eval_") else f"eval_{primary}"
    history = [{"step": step, "loss": 1.0} for step in steps]
    history += [{"step": step, logged: score, "eval_loss": 2.0} | {logged: score} for step, score in zip(steps, scores, strict=True)]
    Run(folder).write_lines("history.jsonl", [*history, {"step": max(steps), "train_runtime": 1.0}])
    before = {primary: before} if before is not None else {}
    Run(folder).write("metrics.json", {"primary": primary, "before": before, "after": {primary: scores[-1], **after}})
    return folder


@pytest.fixture
def found(tmp_path):
    """Two arms; the second was evaluated less often, trained longer, and lacks a sub-score."""
    one = write_run(tmp_path / "run", [0.5, 0.6, 0.9], {"exact_2_terms": 1.0, "exact_10_terms": 0.8, "exact_9_terms": 0.85, "stops": 1.0})
    two = write_run(tmp_path / "run" / "two", [0.25, 0.5], {"exact_2_terms": 0.75, "exact_10_terms": 0.25}, steps=[20, 40])
    return ablation.compare({"one": one, "two": two})


def test_scores_over_steps(found):
    assert found["primary"] == "exact"
    assert (found["arms"]["one"]["steps"], found["arms"]["one"]["scores"]) == ([0, 10, 20, 30], [0.0, 0.5, 0.6, 0.9])
    assert (found["arms"]["two"]["steps"], found["arms"]["two"]["scores"]) == ([0, 20, 40], [0.0, 0.25, 0.5])
    assert found["arms"]["one"]["after"]["stops"] == 1.0 and found["arms"]["one"]["before"] == {"exact": 0.0}
    expected = [(0, [0.0, 0.0]), (10, [0.5, None]), (20, [0.6, 0.25]), (30, [0.9, None]), (40, [None, 0.5])]
    assert ablation.over_steps(found) == expected
    assert json.loads(json.dumps(found)) == found


def test_sub_scores_are_sorted_as_a_person_does(found):
    assert ablation.parts(found) == [("2 terms", [1.0, 0.75]), ("9 terms", [0.85, None]), ("10 terms", [0.8, 0.25])]


def test_the_last_step_has_the_score_after_training_whatever_was_logged_there(tmp_path):
    write_run(tmp_path, [0.5, 0.6], {})
    Run(tmp_path).write("metrics.json", {"primary": "exact", "before": {}, "after": {"exact": 0.7}})
    arm = ablation.compare({"one": tmp_path})["arms"]["one"]
    assert (arm["steps"], arm["scores"]) == ([10, 20], [0.5, 0.7])


def test_a_run_that_was_never_evaluated_on_its_way(tmp_path):
    write_run(tmp_path, [0.5], {})
    Run(tmp_path).write_lines("history.jsonl", [{"step": 3, "loss": 1.0}, {"step": 4, "train_runtime": 1.0}])
    assert ablation.compare({"one": tmp_path})["arms"]["one"]["steps"] == [0, 4]


def test_a_loss_is_compared_too(tmp_path):
    found = ablation.compare({"one": write_run(tmp_path, [2.0, 1.5], {"eval_exact": 1.0}, primary="eval_loss", before=3.0)})
    assert found["arms"]["one"]["scores"] == [3.0, 2.0, 1.5] and ablation.parts(found) == []


@pytest.mark.parametrize("missing", ["history.jsonl", "metrics.json"])
def test_an_unfinished_run_is_not_compared(tmp_path, missing):
    (write_run(tmp_path, [0.5], {}) / missing).unlink()
    with pytest.raises(RecipeError, match=f"holds no {missing}: the run has not finished"):
        ablation.compare({"one": tmp_path})


def test_of_many_steps_a_few_are_shown_evenly_with_both_ends(tmp_path):
    found = ablation.compare({"one": write_run(tmp_path, [0.01 * i for i in range(80)], {})})
    assert [step for step, _ in ablation.over_steps(found)] == list(range(0, 801, 100))
    assert len(ablation.over_steps(found, 10**9)) == 81


# --- what a person sees


@pytest.fixture
def printed(monkeypatch):
    """What is printed on a terminal of 80 columns, line by line."""
    from rich.console import Console

    def lines(found):
        with (console := Console(width=80, highlight=False)).capture() as capture:
            monkeypatch.setattr(screen, "out", console)
            screen.print_ablation(found)
        return [line.rstrip() for line in capture.get().splitlines()]

    return lines


def test_tables(found, printed):
    assert printed(found) == [
        "",
        "exact on held-out data, while training",
        "step    one    two",
        "   0  0.000  0.000",
        "  10  0.500      -",
        "  20  0.600  0.250",
        "  30  0.900      -",
        "  40      -  0.500",
        "",
        "exact on held-out data, after training",
        "            one    two",
        " 2 terms  1.000  0.750",
        " 9 terms  0.850      -",
        "10 terms  0.800  0.250",
    ]


NAMES = ["[bold]a[red]", "<b>$x_1$</b>", "_", ":smile:", "a name that is much too long for any column of any table at all", "f", "g", "h"]


def many(names):
    arm = ablation.Trained(steps=[0, 1000], scores=[0.0, 0.5], before={"exact": 0.0}, after={"exact": 0.5, "exact_[red]x[/]": 0.25})
    return ablation.Comparison(primary="exact", arms=dict.fromkeys(names, arm))


def test_names_are_printed_as_they_are_and_numbers_stay_whole(printed):
    lines = printed(many(NAMES))
    assert max(map(len, lines)) <= 80
    assert all(name in "\n".join(lines) for name in ("$x_1$", ":smile:", "[red]x[/]"))
    assert sum(line.count("0.500") for line in lines) == len(NAMES)


def drawn(found, folder):
    folder.mkdir()
    ablation.draw(found, folder)
    return (folder / "ablation.svg").read_bytes(), (folder / "ablation.png").read_bytes()


def test_the_picture_is_the_same_for_the_same_numbers_and_its_text_can_be_read(found, tmp_path):
    import matplotlib

    svg, png = drawn(found, tmp_path / "a")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black"}):
        assert drawn(found, tmp_path / "b") == (svg, png)
    assert len(png) > 10_000 and png.startswith(b"\x89PNG") and int.from_bytes(png[16:20], "big") == 1600
    for words in ("one", "two", "exact on held-out data", "optimiser steps", "terms", "after training", "10"):
        assert f">{words}</text>".encode() in svg
    assert b"<dc:date>" not in svg


@pytest.mark.parametrize(
    "arms",
    [
        {"one": {"steps": [5], "scores": [0.5]}},
        {"one": {"steps": [0], "scores": [0.0]}, "two": {"steps": [0], "scores": [float("nan")]}},
        {"one": {"steps": [], "scores": []}},
        {"one": {"steps": list(range(300)), "scores": [float(i) for i in range(300)]}},
    ],
)
@pytest.mark.filterwarnings("error")
def test_any_number_of_points_is_drawn(arms, tmp_path):
    found = {"primary": "exact", "arms": {name: {"before": {}, "after": {}, **arm} for name, arm in arms.items()}}
    assert len(drawn(found, tmp_path / "a")[1]) > 5_000


@pytest.mark.filterwarnings("error")
def test_any_name_is_drawn(tmp_path):
    import xml.etree.ElementTree as xml

    svg, _ = drawn(many(name for name in NAMES if name != "_"), tmp_path / "a")
    assert {"[bold]a[red]", "<b>$x_1$</b>"} <= {text.text for text in xml.fromstring(svg).iter() if text.tag.endswith("}text")}


# --- the whole of it


@pytest.fixture
def trained(declare):
    """What is printed of an ablation as a person runs it; `again` has the same rows from another function."""
    result = run("train", declare('{"as it is": {}, "again": {"data": same_rows}}'))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_whole_ablation(trained, tmp_path):
    folder = tmp_path / "runs" / "compare"
    for arm in (folder, folder / "again"):
        assert {"recipe.json", "metrics.json", "history.jsonl", "samples.jsonl", "adapter", "merged"} <= {p.name for p in arm.iterdir()}
    recipe = json.loads((folder / "again" / "recipe.json").read_text())
    assert recipe["overrides"] == {"arm": "again"} and "same_rows" in recipe["resolved"]["data"]
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["compare"]

    found = json.loads((folder / "ablation.json").read_text())
    one, again = found["arms"].values()
    assert one == again  # the same weights, adapter, batches and steps: all that is equal gives equal scores
    assert one["before"]["eval_loss"] != one["after"]["eval_loss"]
    assert one["steps"] == [0, 1, 2] and list(one["after"]) == ["exact", "exact_3_digits", "stops", "eval_loss", *MANNER]
    assert (folder / "ablation.png").stat().st_size > 10_000 and (folder / "ablation.svg").is_file()

    table = trained[trained.index("exact on held-out data, while training") :].splitlines()
    assert table[1].split() == ["step", "as", "it", "is", "again"] and [line.split()[0] for line in table[2:5]] == ["0", "1", "2"]
    assert trained.count("check passed") == 2 and trained.count("arm 2 of 2: again") == 2
    assert trained.rindex("check passed") < trained.index("Deployable folder")

    assert run("report", folder).stdout.splitlines()[-len(table) :] == table
    assert json.loads(run("report", folder, "--json").stdout)["ablation"] == found
    assert "ablation" not in json.loads(run("report", folder / "again", "--json").stdout)
    assert json.loads(run("eval", folder / "again", "--json").stdout)["exact"] == again["after"]["exact"]
    written = (folder / "metrics.json").stat().st_mtime_ns
    assert run("train", "compare", "--resume").stdout.strip().splitlines() == table  # both are finished: only compared anew
    assert (folder / "metrics.json").stat().st_mtime_ns == written
