"""Whole runs of a small model, full fine-tune and LoRA; as a program, on the processes that `accelerate launch` starts.

python several.py BASE FOLDER KIND... writes FOLDER/KIND as a run folder, and FOLDER/KIND.rank.json with what each process did.
A KIND that ends in `+resumed` is ended before its last step and begun again.
"""

import json
import os
import sys
from pathlib import Path

KINDS = {
    "full": dict(adapter=None, quantization=None, greater_is_better=True),  # the worst is kept, which is loaded again
    "lora": dict(quantization=None, greater_is_better=False),  # the last
    "stream": dict(quantization=None, greater_is_better=False, streaming=True),
}
KEPT = {"full": 1, "lora": 3, "stream": 3}  # the step
WINDOW = 26  # conversations of a stream: its second window begins within the third step
FRESH = ("fsdp2", "full")  # whose proof is held in a fresh process, as it is outside of tests
SETTINGS = dict(metric_for_best_model="eval_loss", eval_strategy="steps", eval_steps=1, save_total_limit=None, max_steps=3)
SETTINGS |= dict(learning_rate=1e-3, warmup_steps=1, held_out=5, max_new_tokens=8, max_kl=1e-6, report_to="none", retain=None)
SETTINGS |= dict(logging_steps=1, neftune_noise_alpha=5.0, packing="none", per_device_train_batch_size=4, per_device_eval_batch_size=2)


def chats(count=30):
    return [
        {
            "messages": [
                {"role": "user", "content": f"Say {i}." + " Please." * (i % 3)},
                {"role": "assistant", "content": f"{i} " * (1 + i % 7)},
            ]
        }
        for i in range(count)
    ]


def run(kind, base, folder, **overrides):
    """A trainer of that kind that has been trained."""
    from sft_recipes import build_trainer
    from sft_recipes.data import windows

    windows.WINDOW = WINDOW
    fields = {**SETTINGS, **KINDS[kind], "model": str(base), "output_dir": str(folder / kind), **overrides}
    trainer = build_trainer("gemma-tools", scale="tiny", train_dataset=chats(), **fields)
    trainer.train()
    return trainer


class Ended(Exception):
    pass


def resumed(kind, base, folder):
    """A trainer of that kind that went on from the checkpoint before the last step of another, which every process left there."""
    from sft_recipes.trainer import RecipeTrainer

    last, name, begun = SETTINGS["max_steps"] - 1, f"{kind}+resumed", []
    taken = RecipeTrainer.training_step

    def step(trainer, *args, **kwargs):
        begun.append(trainer.state.global_step)
        if len(begun) > last and begun[-2] < last:
            raise Ended
        return taken(trainer, *args, **kwargs)

    RecipeTrainer.training_step = step
    try:
        run(kind, base, folder, output_dir=str(folder / name))
    except Ended:
        trainer = run(kind, base, folder, output_dir=str(folder / name))
    finally:
        RecipeTrainer.training_step = taken
    assert begun == [*range(last), last, last]  # of which the first `last` was never taken
    return trainer


def prove_here(merged, record, folder):
    """The proof, held in this process: a fresh one takes ten seconds to start."""
    from sft_recipes.export.proof import compare

    return compare(merged, record)


def watched(folder):
    """The files below a folder that this process opens for writing from now on, by their paths in it."""
    found = set()

    def audit(event, args):
        if event == "open" and isinstance(args[0], str) and set(args[1] or "") & set("wax+") and args[0].startswith(str(folder)):
            found.add(os.path.relpath(args[0], folder))

    sys.addaudithook(audit)
    return found


if __name__ == "__main__":
    from sft_recipes.export import deployment, proof

    base, folder = Path(sys.argv[1]), Path(sys.argv[2])
    written = watched(folder)
    for kind in sys.argv[3:]:
        deployment.prove = prove_here if (folder.name, kind) != FRESH else proof.prove
        trainer = resumed(kind.removesuffix("+resumed"), base, folder) if kind.endswith("+resumed") else run(kind, base, folder)
        accelerator = trainer.accelerator
        told = {"processes": accelerator.num_processes, "type": accelerator.distributed_type.value, "written": sorted(written)}
        told["parts"] = sorted({type(p.data).__name__ for p in trainer.model.parameters()})
        (folder.parent / f"{folder.name}.{kind}.{accelerator.process_index}.json").write_text(json.dumps(told))
