"""A finished run folder, made up: everything a trainer writes, small, with numbers that are easy to find again."""

from sft_recipes.run import Run

STOP = "<end_of_turn>"
REPLIES = {  # before and after training, and after the last step: right or wrong
    "f.jsonl:1": (1, 1, 1),
    "f.jsonl:2": (0, 1, 1),
    "f.jsonl:3": (1, 0, 0),
    "f.jsonl:4": (0, 0, 1),
    "f.jsonl:5": (0, 1, 0),
}


def sample(source, stage, right, text=""):
    return {
        "stage": stage,
        "step": 0,
        "source": source,
        "message_index": 1,
        "asked": f"{text}What is in {source}?",
        "expected": {"role": "assistant", "content": f"{text}reference", "tool_calls": [call(f"{text}look")]},
        "prompt": f"{text}served",
        "reply": f"{text}{stage} said{STOP if right else ''}",
        "parsed": {"stopped": bool(right)},
        "scores": {"exact": float(right), "stops": float(right), "length": 12.0},
    }


def call(name):
    return {"type": "function", "function": {"name": name, "arguments": {"where": "é"}}}


def scores(exact, loss):
    return {"exact": exact, "exact_2_terms": exact, "stops": 1.0, "eval_loss": loss, "length": 12.34, "repeats": 0.02}


def history():
    for step in range(1, 7):
        rate = {"learning_rate": 1e-3 / step, "supervised_tokens_per_second": 900.0 + step}
        yield {"step": step, "loss": 2.0 / step, "grad_norm": float("nan") if step == 3 else 1.0, **rate}
        if step % 2 == 0:
            yield {"step": step, "eval_loss": 1.0 + step, "eval_exact": step / 10, "eval_repeats": 0.1}
            yield {"step": step, "eval_retain_loss": 2.0 + step / 100, "eval_runtime": 3.0}
    yield {"train_runtime": 7300.0, "step": 6}


def account(conversations):
    return {
        "conversations": conversations,
        "turns": 7,
        "rows": 6,
        "tokens": 12_345,
        "supervised_tokens": 2_345,
        "lost_tokens": 0,
        "longest": 99,
        "trimmed": ["t.jsonl:9"],
        "dropped": [],
        "unsupervised": [],
    }


PROOF = {
    "faults": [],
    "kl": 1.5e-12,
    "max_kl": 2.9e-10,
    "tokens": 9922,
    "loss": 0.56,
    "trained_loss": 0.56,
    "generations": 64,
    "generations_equal": True,
    "stops": 1.0,
    "trained_stops": 1.0,
    "prompts": 64,
    "template": "fe19",
    "base": "trained",
    "bases": {"trained": {"kl": 1.5e-12, "loss": 0.56}, "original": {"kl": 1.1e-2, "loss": 0.6}},
}


def make(folder, text="", samples=None, recipe=(), metrics=(), drop=(), logged=False):
    """A finished run folder as the trainer writes it; `text` stands in front of whatever comes from a dataset or a model.

    Without what was `logged` there are fewer plots, which take most of the time.
    """
    run = Run(folder)
    origin = {
        "run": "runs/first",
        "part": "adapter",
        "recipe": f"{text}first",
        "scale": "tiny",
        "primary": "exact",
        "score": 0.5,
        "from": None,
    }
    files = {
        "recipe.json": {
            "recipe": f"{text}adder",
            "scale": "tiny",
            "overrides": {"learning_rate": "1e-4", "start_from": "a b", "packing": True},
            "resolved": {
                "model": "m/base",
                "primary": "exact",
                "quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
                "adapter": {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": f"{text}q_proj"},
                "data": [{"path": f"{text}hub/data", "name": "cfg", "split": "train"}, "t.jsonl"],
                "held_out": 200,
                "chat_template": "gemma3",
            },
            "config": {
                "learning_rate": 1e-4,
                "num_train_epochs": 2,
                "per_device_train_batch_size": 8,
                "seed": 42,
                "output_dir": str(folder),
            },
            "base": {"model": f"{text}m/base", "revision": "abc123", "sha256": "5ba5e" * 12, "tensors": 3},
            "from": origin,
            "data": {"train": "7ra1" * 16, "held_out": "e7a1" * 16},
            "chat_template": "7e3b" * 16,
            "layout": {"name": "tree", "reason": "the model takes it"},
            "versions": {"torch": "2.13.0", "trl": "1.16.0"},
            **dict(recipe),
        },
        "metrics.json": {
            "primary": "exact",
            "before": scores(0.4, 2.0),
            "after": scores(0.6, 1.25),
            "end": scores(0.55, 1.125),
            "merge": PROOF,
            "supervision": {"train": account(1_000), "held_out": account(5)},
            "stop_tokens": [STOP],
            "train": {"train_runtime": 7300.0},
            "steps": {"skipped": [], "unmoved": {}},
            "best": {"metric": "exact", "step": 4, "value": 0.6, "agree": False, "said": f"{text}Step 4 was kept."},
            "curves": {"overfitting": None, "said": f"{text}No overfitting."},
            "retain": {
                "before": {"loss": 2.0, "accuracy": 0.5},
                "after": {"loss": 2.125, "accuracy": 0.4},
                "said": "It forgot a little.",
                "rows": 64,
            },
            "replay": {"mix": 0.2, "conversations": 400, "supervised_tokens": 25_000, "share": 0.2},
            **dict(metrics),
        },
    }
    for name, content in files.items():
        run.write(name, {key: value for key, value in content.items() if key not in drop})
    if samples is None:
        stages = ("before", "after", "end")
        samples = [sample(f"{text}{s}", stage, right[i], text) for i, stage in enumerate(stages) for s, right in REPLIES.items()]
    run.write_lines("samples.jsonl", samples)
    run.write_lines("history.jsonl", history() if logged else [{"train_runtime": 7300.0, "step": 6}])
    tokens = [{"text": f"{text}w{i}", "id": i, "learned": i >= 900, "weight": 0.5 if i == 901 else 1.0} for i in range(903)]
    run.write_lines("rows.jsonl", [{"number": 3, "source": f"{text}t.jsonl:4", "tokens": tokens}])
    return run
