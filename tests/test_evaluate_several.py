"""Generation during training is the same on two processes as on one, and nobody waits for ever; as a program, those two processes.

The questions do not divide evenly, one process may have none, and some replies end at once where others run into the limit. With
the weights in parts (FSDP2) each forward pass waits for both processes, so a process that stops too early leaves the other hanging.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from accelerate import DistributedType, PartialState
from accelerate.state import AcceleratorState
from steps import trainer_of
from transformers import TrainerCallback

from sft_recipes.evaluate import Question, Sample, gathered, generate, share

LIMIT, TOGETHER = 16, 2  # tokens of a reply, prompts of a batch
LAYERS = {"full-llama": "LlamaDecoderLayer", "lora-gemma3": "Gemma3DecoderLayer"}
WHOLE = dict(per_device_train_batch_size=16)
HALVES = dict(per_device_train_batch_size=4, gradient_accumulation_steps=2)
NUMBERS = (5, 1)  # of questions: on two processes three and two, which are two batches and one; one and none


class Asked(TrainerCallback):
    """Lets the model answer at each evaluation, as `RecipeTrainer` does: before the first step and after the last."""

    def __init__(self):
        self.replies = []

    def on_evaluate(self, args, state, control, **kwargs):
        for number in NUMBERS:
            asked = questions(self.trainer.train_dataset["input_ids"], number)
            rank, processes = self.trainer.accelerator.process_index, self.trainer.accelerator.num_processes
            mine = share(asked, rank, processes)
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            replies = generate(model, [q.prompt_ids for q in mine], stops(), 0, LIMIT, TOGETHER)
            samples = [Sample(question, ids, {}) for question, ids in zip(mine, replies, strict=True)]
            self.replies.append([sample.reply_ids for sample in gathered(samples, asked)])


def questions(rows, number):
    """Prompts of five to thirteen tokens."""
    return [Question(f"talks.jsonl:{i + 1}", 1, "", rows[i][: 5 + 3 * i % 9], {}) for i in range(number)]


def stops():
    """Every ninth token ends a reply, so that untrained models give long ones and short ones."""
    return set(range(2, 2048, 9))


def asked_while_training(kind, **layout):
    """The replies before and after a step, the evaluation losses, and the norm of the step's gradient."""
    callback = Asked()
    with tempfile.TemporaryDirectory() as folder:
        judged = dict(eval_on_start=True, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=3)
        trainer = trainer_of(kind, folder, callbacks=[callback], **judged, **layout)
        callback.trainer = trainer
        trainer.train()
    history = trainer.state.log_history
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    return callback.replies, losses, next(entry["grad_norm"] for entry in history if "loss" in entry), trainer


def in_parts(layer):
    """From now on accelerate shards: it does so (FSDP2) for launches on GPUs alone, so the two processes are called that."""
    os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_RESHARD_AFTER_FORWARD="true")
    os.environ.update(FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP", FSDP_TRANSFORMER_CLS_TO_WRAP=layer)

    def init(self, *args, **kwargs):
        if not AcceleratorState._shared_state:
            PartialState(cpu=True)
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        original(self, *args, **kwargs)

    original = AcceleratorState.__init__
    AcceleratorState.__init__ = init


@pytest.fixture(scope="module")
def on_two_processes(tmp_path_factory):
    file = tmp_path_factory.mktemp("two") / "found.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__, str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=150)
    except subprocess.TimeoutExpired as hanging:
        pytest.fail(f"one process waits for the other: {(hanging.stdout or b'').decode()[-500:]}")
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(file)


@pytest.mark.parametrize("kind", LAYERS)
def test_replies_and_losses_are_those_of_one_process(on_two_processes, kind):
    replies, losses, norm, _ = asked_while_training(kind, **WHOLE)
    lengths = {len(reply) for reply in replies[0]}
    assert min(lengths) < 5 and max(lengths) == LIMIT and replies[0] != replies[len(NUMBERS)]
    for wrapped in ("ddp", "fsdp2"):
        found = on_two_processes[kind, wrapped]
        assert found["replies"] == replies
        assert found["losses"] == pytest.approx(losses, rel=1e-5) and found["norm"] == pytest.approx(norm, rel=1e-4)


def test_the_two_processes_were_what_they_are_called(on_two_processes):
    kinds = {wrapped: found["type"] for (_, wrapped), found in on_two_processes.items()}
    assert kinds == {"ddp": "MULTI_CPU", "fsdp2": "FSDP"}


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = {}
    for wrapped in ("ddp", "fsdp2"):
        for kind, layer in LAYERS.items():
            if wrapped == "fsdp2":
                in_parts(layer)
            print(kind, wrapped, flush=True)
            replies, losses, norm, trainer = asked_while_training(kind, **HALVES)
            name = trainer.accelerator.distributed_type.value
            results[kind, wrapped] = {"replies": replies, "losses": losses, "norm": norm, "type": name}
    if trainer.is_world_process_zero():
        torch.save(results, sys.argv[1])
