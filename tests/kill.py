"""Kill a run at random moments, resume it, and compare every weight with those of the run that was let be.

`python tests/kill.py --times 50` (make kill), `--signal SIGTERM` to tell it to end instead. The moments are drawn over the whole of
the run, every fourth in the middle of a save.
Each run is a process of its own, forked from one that has imported everything and computed nothing; so is the proof of its merge,
which is a new interpreter otherwise. The command is the one that a person types.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

STEPS = 12
SAVES = 4


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--times", type=int, default=50)
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--signal", default="SIGKILL")
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        found = killed(given.times, random.Random(given.seed), signal.Signals[given.signal])
    print(json.dumps(found, indent=1))
    sys.exit(found["identical"] != given.times)


def killed(times: int, draw: random.Random, number: signal.Signals) -> dict:
    """Where the runs were killed, and of how many the weights are those of the run that was not; `slowest`: seconds to the end."""
    import sft_recipes.trainer  # noqa: F401  what every run needs, once

    forked(prepared, Path("log"))
    began = time.monotonic()
    assert forked(lambda: train("whole"), Path("whole.log")) == 0, Path("whole.log").read_text()[-2000:]
    seconds, expected = time.monotonic() - began, weights(Path("whole"))
    phases, ends, identical, wrong, slowest = Counter(), Counter(), 0, [], 0.0
    for run in range(times):
        name = f"run-{run}"
        in_a_save = draw.randrange(1, SAVES + 1) if run % 4 == 1 else 0
        moment = draw.uniform(0.0, 0.01) if in_a_save else draw.uniform(0.15, 1.0) * seconds
        phase, ended, took = kill(name, moment, in_a_save, number)
        phases[phase] += 1
        ends[ended] += 1
        slowest = max(slowest, took)
        resume = ["--resume"] if Path(name, "recipe.json").is_file() else []
        code = forked(lambda name=name, resume=resume: train(name, *resume), Path(f"{name}.log"))
        if code == 0 and weights(Path(name)) == expected:
            identical += 1
        else:
            wrong.append({"run": name, "code": code, "said": Path(f"{name}.log").read_text()[-1500:]})
    told = {"seconds": round(seconds, 1), "killed": dict(phases), "exit_codes": dict(ends), "slowest": round(slowest, 2)}
    return {"times": times, "identical": identical, **told, "wrong": wrong}


def kill(name: str, moment: float, in_a_save: int, number: signal.Signals) -> tuple[str, int, float]:
    """Start a run and kill it: so many seconds after it began, or after its n-th save did.

    Returns:
        what it was doing, its exit code, and the seconds until it had ended.
    """
    folder, began = Path(name), time.monotonic()
    process = fork(lambda: train(name), Path(f"{name}.log"))
    saving, saves, inside = folder / "checkpoints" / ".saving", 0, False
    while os.waitpid(process, os.WNOHANG) == (0, 0):
        now = saving.exists()
        saves, inside = saves + (now and not inside), now
        if in_a_save and saves == in_a_save:
            time.sleep(moment)
            break
        if not in_a_save and time.monotonic() - began > moment:
            break
        time.sleep(0.0005)
    else:
        return "ended before", 0, 0.0
    sent, was = time.monotonic(), phase(folder)
    os.kill(process, number)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    (folder / "evaluating").unlink(missing_ok=True)
    return was, code, time.monotonic() - sent


def phase(folder: Path) -> str:
    """What a run was doing, by what it has left."""
    if not (folder / "recipe.json").exists():
        return "check"
    if (folder / "checkpoints" / ".saving").exists():
        return "save"
    if (folder / "evaluating").exists():
        return "evaluation"
    if (folder / "metrics.json").exists():
        return "merge"
    return "training"


def fork(work, log: Path) -> int:
    """A process that does it, its output in a file."""
    process = os.fork()
    if process:
        return process
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    try:
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    os._exit(code)


def forked(work, log: Path) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(fork(work, log), 0)[1])


def train(name: str, *more: str) -> None:
    """`sft-recipes train`, with a mark where an evaluation is under way."""
    from sft_recipes import cli
    from sft_recipes.export import proof
    from sft_recipes.training import judged

    loop = judged.JudgedTrainer.evaluation_loop

    def marked(self, *args, **kwargs):
        mark = self.run.folder / "evaluating"
        mark.touch()
        found = loop(self, *args, **kwargs)
        mark.unlink(missing_ok=True)
        return found

    judged.JudgedTrainer.evaluation_loop = marked
    proof.subprocess = SimpleNamespace(run=proven, PIPE=None)
    sys.argv = ["sft-recipes", "train", "killed", *more, "--output_dir", name]
    cli.main()


def proven(command: list[str], **kwargs) -> SimpleNamespace:
    """The proof in a forked process instead of a new interpreter."""
    from sft_recipes.export.proof import Record, compare

    answer = Path(f"{command[-1]}.answer")

    def prove() -> None:
        answer.write_text(json.dumps(compare(Path(command[-2]), Record.read(Path(command[-1])))))

    code = forked(prove, Path("proof.log"))
    return SimpleNamespace(returncode=code, stdout=answer.read_text() if code == 0 else "", stderr="")


RECIPE = f'''"""A small run with noise, dropout and 4 bits."""

from peft import LoraConfig
from transformers import BitsAndBytesConfig

from sft_recipes import Recipe, RecipeTrainer


class Killed(RecipeTrainer):
    recipe = Recipe(
        model="base",
        data="data.jsonl",
        held_out=5,
        adapter=LoraConfig(r=4, lora_dropout=0.1, target_modules=r".*language_model.*(q|v)_proj", task_type="CAUSAL_LM"),
        quantization=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        max_new_tokens=8,
        primary="right",
        config=dict(
            max_steps={STEPS}, per_device_train_batch_size=4, learning_rate=1e-2, neftune_noise_alpha=5, report_to="none", use_cpu=True,
            eval_strategy="steps", eval_steps={STEPS // SAVES}, save_strategy="steps", save_steps={STEPS // SAVES}, logging_steps=2,
        ),
    )

    @staticmethod
    def score(reply, expected):
        return {{"right": float(reply["content"] == expected["content"])}}
'''


def prepared() -> None:
    """The recipe, a base of 0.1 M parameters with its tokenizer, and conversations."""
    sys.path.insert(0, str(Path(__file__).parent))
    from conftest import make_small_gemma, tokenizer_with

    make_small_gemma().save_pretrained("base")
    tokenizer_with("gemma3").save_pretrained("base")
    talk = "".join(
        json.dumps({"messages": [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": f"{i}"}]}) + "\n"
        for i in range(45)
    )
    Path("data.jsonl").write_text(talk)
    Path("recipes").mkdir()
    Path("recipes/killed.py").write_text(RECIPE)


def weights(folder: Path) -> dict[str, str]:
    """A hash of everything that was deployed and trained."""
    files = [*folder.glob("merged/*.safetensors"), *folder.glob("adapter/*.safetensors")]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
