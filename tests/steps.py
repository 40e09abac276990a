"""One optimiser step over the same sixteen conversations, however they are laid out; as a program, on several processes."""

import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import torch
from accelerate.utils import gather_object
from conftest import make_small_gemma, tokenizer_with
from peft import LoraConfig
from transformers import Gemma4Config, Gemma4ForConditionalGeneration, LlamaConfig, LlamaForCausalLM, TrainerCallback

from sft_recipes import Recipe, RecipeConfig, RecipeError, supervise
from sft_recipes.rows import build_rows, dataset, pack
from sft_recipes.stopping import Stopped
from sft_recipes.training.lasting import LastingTrainer
from sft_recipes.training.step import StepTrainer

SIZE = dict(vocab_size=2048, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)


def make_small_llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZE, initializer_range=0.2, tie_word_embeddings=False)).eval()


def make_small_gemma4():
    """A class with `accepts_loss_kwargs=False`, in which upstream averages means of micro-batches."""
    torch.manual_seed(0)
    text = dict(head_dim=16, global_head_dim=16, sliding_window=8, layer_types=["sliding_attention", "full_attention"])
    text |= dict(hidden_size_per_layer_input=0, num_kv_shared_layers=0, initializer_range=0.2)
    config = Gemma4Config(text_config={**SIZE, **text}, vision_config=None, audio_config=None)
    return Gemma4ForConditionalGeneration(config).eval()


WORDS = [" " + chr(ord("A") + i) * 2 for i in range(16)]  # each conversation has tokens that no other has


def lora():
    return LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj|down_proj)", init_lora_weights=False, task_type="CAUSAL_LM")


def dropout():
    return LoraConfig(r=4, lora_dropout=0.2, target_modules=r".*language_model.*\.(q_proj|down_proj)", task_type="CAUSAL_LM")


KINDS = {
    "lora-gemma3": (make_small_gemma, lora),
    "full-llama": (make_small_llama, lambda: None),
    "full-gemma4": (make_small_gemma4, lambda: None),
}


def talks(count=16):
    """Conversations whose answers are from one to dozens of tokens long, so that a mean of means would show."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"Say {i}." + " Please." * (i % 3) + WORDS[i]},
                {"role": "assistant", "content": f"{i} " * (1 + i * i % 23), "weight": (1.0, 0.5, 2.0)[i % 3]},
            ]
        }
        for i in range(count)
    ]


def rows(tokenizer, weighted=False, **options):
    """Rows of those conversations, with their sources."""
    supervised = []
    for i, talk in enumerate(talks()):
        if not weighted:
            del talk["messages"][1]["weight"]
        supervised.append((f"talks.jsonl:{i + 1}", supervise(talk["messages"], tokenizer)))
    return build_rows(supervised, None, **options)[0]


class Gradients(TrainerCallback):
    """Takes down the gradients of each step before it is taken."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


class Noise:
    """Measures the noise on the embeddings of every forward pass: for each document its largest part of what is declared.

    Args:
        trainer: its model's first layer is watched from now on.
        alpha: the declared one.
    """

    def __init__(self, trainer, alpha):
        self.shares, self.alpha = [], alpha
        self.embedding = trainer.model.get_input_embeddings()
        self.embedding.register_forward_pre_hook(self.read)
        trainer.model.get_decoder().layers[0].register_forward_pre_hook(self.measure, with_kwargs=True)

    def read(self, module, args):
        self.ids = args[0]

    def measure(self, module, args, kwargs):
        if not module.training:
            return
        table, d = self.embedding.weight, self.embedding.weight.shape[1]
        clean = self.embedding.forward(self.ids).detach()
        scale = (clean.flatten() @ table[self.ids].flatten()) / (table[self.ids].flatten() @ table[self.ids].flatten())
        noise = ((kwargs.get("hidden_states", args[0] if args else None) - clean) / scale).detach().abs().amax(-1)
        for row, ids in zip(noise, self.ids, strict=True):
            begins = [*(ids == 2).nonzero().flatten().tolist(), len(ids)]  # every document begins with <bos>
            for start, end in pairwise(begins):
                length = int((ids[start:end] != 0).sum())
                self.shares.append(row[start : start + length].max().item() / (self.alpha / (length * d) ** 0.5))
                assert not row[start + length : end].any()  # padding


def trainer_of(kind, folder, found=None, recipe=None, callbacks=(), trainer_class=StepTrainer, **config):
    """A `StepTrainer` of a small model, everything in float32 and nothing clipped unless said otherwise."""
    make, peft_config = {**KINDS, "dropout-gemma3": (make_small_gemma, dropout)}[kind]
    tokenizer = tokenizer_with("gemma3")
    quiet = dict(report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True, bf16=False, gradient_checkpointing=False)
    steady = dict(max_steps=1, logging_steps=1, max_grad_norm=0.0, learning_rate=1e-2, train_sampling_strategy="random")
    args = RecipeConfig(output_dir=str(folder), dataset_kwargs={"skip_prepare_dataset": True}, **{**quiet, **steady, **config})
    data = dataset(found or rows(tokenizer))
    return trainer_class(
        recipe or Recipe(model="none", data="none"),
        model=make(),
        args=args,
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
        peft_config=peft_config(),
        callbacks=list(callbacks),
    )


def plant(trainer, row, value):
    """Fill the embedding of a token that only one row has."""
    ids = trainer.train_dataset["input_ids"]
    others = {token for i, found in enumerate(ids) if i != row for token in found}
    token = next(token for token in ids[row] if token not in others)
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight[token] = value


def one_step(kind, folder, found=None, recipe=None, evaluated=False, **config):
    """The logged values and the gradients of one step; `evaluated`: after an evaluation, as a recipe's run begins.

    Returns:
        what the trainer logged, the gradient of each trained tensor, and the trainer.
    """
    gradients = Gradients()
    trainer = trainer_of(kind, folder, found, recipe, [gradients], **config)
    if evaluated:
        trainer.evaluate()
    trainer.train()
    return trainer.state.log_history[0], gradients.steps[0], trainer


class Losses(TrainerCallback):
    """The loss of every step, and the trained weights at the end."""

    def __init__(self):
        self.steps, self.weights = [], {}

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        if "loss" in logs:
            self.steps.append(logs["loss"])

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.weights = {name.removeprefix("module."): p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


SHARED = {
    "padded": dict(per_device_train_batch_size=2),
    "laid-in-a-row": dict(per_device_train_batch_size=2, padding_free=True, max_length=None),
    "packed": dict(per_device_train_batch_size=1),
}


def shared(layout, folder, processes, resume=None, **config):
    """Two epochs of thirteen conversations with noise and dropout, in steps of two micro-batches, wherever those are computed.

    Returns:
        the loss of each step, and the weights.
    """
    losses, found = Losses(), rows(tokenizer_with("gemma3"))[:13]
    if layout == "packed":
        found = pack(found, share=True, count=7).rows
    steady = dict(max_steps=-1, num_train_epochs=2, max_grad_norm=1.0, learning_rate=1e-3, neftune_noise_alpha=5.0)
    steady |= dict(train_sampling_strategy="group_by_length", gradient_accumulation_steps=2 // processes, **SHARED[layout])
    trainer = trainer_of("dropout-gemma3", folder, found, None, [losses], LastingTrainer, **{**steady, **config})
    trainer.continued_from = resume
    trainer.train(resume_from_checkpoint=resume and str(resume))
    return losses.steps, losses.weights


class ToldInOne(TrainerCallback):
    """The second process alone is told to end, in the third step."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2 and args.process_index == 1:
            self.trainer.stop.asked = "SIGTERM"


def stopped_in_one(folder):
    """What each process says when it has ended."""
    trainer = trainer_of("lora-gemma3", folder, trainer_class=LastingTrainer, max_steps=5, per_device_train_batch_size=2)
    trainer.add_callback(ToldInOne(trainer))
    try:
        trainer.train()
    except Stopped as stopped:
        return gather_object([str(stopped)])


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = {}
    place = Path(sys.argv[1]).parent
    results["shared"] = {layout: shared(layout, place / "two" / layout, 2, save_strategy="steps", save_steps=5) for layout in SHARED}
    for layout in SHARED:
        saved = place / "one" / layout / "checkpoint-5"
        results["resumed", layout] = shared(layout, saved.parent, 2, resume=saved)
    results["stopped"] = stopped_in_one(place / "stopped")
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            layout = dict(per_device_train_batch_size=4, gradient_accumulation_steps=2)
            logs, gradients, trainer = one_step(kind, folder, evaluated=True, **layout)
            results[kind] = {"logs": logs, "gradients": gradients, "eval_loss": []}
            for layout in ({}, dict(padding_free=True, max_length=None)):
                alone = trainer_of(kind, folder, found=rows(trainer.processing_class)[:13], per_device_eval_batch_size=3, **layout)
                results[kind]["eval_loss"].append(alone.evaluate()["eval_loss"])
            results[kind]["processes"] = trainer.accelerator.num_processes
            packed = pack(rows(trainer.processing_class), share=True, count=4).rows
            layout = dict(per_device_train_batch_size=1, gradient_accumulation_steps=2)
            results[kind]["packed"] = one_step(kind, folder, packed, **layout)[:2]
            noisy = trainer_of(kind, folder, neftune_noise_alpha=5.0, per_device_train_batch_size=4, gradient_accumulation_steps=2)
            noise = Noise(noisy, 5.0)
            noisy.train()
            results[kind]["noise"] = gather_object(noise.shares)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of("full-llama", folder, max_steps=4, per_device_train_batch_size=2)
        plant(trainer, 6, float("nan"))
        try:
            trainer.train()
        except RecipeError as error:
            results["planted"] = gather_object([str(error)])
        layout = dict(per_device_train_batch_size=2, gradient_accumulation_steps=2)
        trainer = trainer_of("full-llama", folder, **{**layout, "max_steps": 10, "warmup_steps": 2, "learning_rate": 1e-3})
        trainer.train()
        results["rates"] = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    if trainer.is_world_process_zero():
        torch.save(results, sys.argv[1])
