"""Teach Llama 3.2 3B, a base model, to write the code it is asked for.

A base model continues text: it has no chat template, and says neither where an answer begins nor where it ends. It gets ChatML, whose
control tokens take two of the slots that Llama 3's tokenizer reserves; a LoRA of rank 8 on the queries and values learns to answer,
and the rows of those two tokens are learned with it.

Hardware: one CUDA GPU with 24 GB (not measured by us yet); without CUDA, the tiny scale on 2 CPU cores.
Command:  make train RECIPE=llama-code                      your own data: DATA=pairs.jsonl
Result:   full scale, expected: loss from 2.0-2.5 to 0.8-1.2; one that stays above 1.8 is told to look at the mask.
          tiny scale: python_passes from 0.00 to 0.48 on 100 held-out requests; loss from 1.41 to 0.22.

The replies are judged by running them: `python_passes` on the asserts of MBPP's training and validation problems, which are not
trained on. Its test problems are left alone, so that they can be used to report a result; OSS-Instruct was cleaned of both.
"""

from peft import LoraConfig

from sft_recipes import TINY, Recipe, RecipeTrainer, Source, scores
from sft_recipes.tiny.code_pairs import held_out_pairs, train_pairs

OSS_INSTRUCT = "ise-uiuc/Magicoder-OSS-Instruct-75K"  # MIT; `problem` and `solution`, half of it Python
MBPP = "google-research-datasets/mbpp"  # CC BY 4.0; sanitized: `prompt`, `code`, `test_imports` and `test_list`


class LlamaCode(RecipeTrainer):
    recipe = Recipe(
        model="meta-llama/Llama-3.2-3B",
        data=Source(OSS_INSTRUCT, split="train[:20000]"),
        held_out=(Source(MBPP, "sanitized", "train"), Source(MBPP, "sanitized", "validation")),
        chat_template="chatml",
        adapter=LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        primary="python_passes",
        loss_hint=1.8,
        config=dict(
            num_train_epochs=2,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            learning_rate=2e-4,
            warmup_steps=0.05,
            max_length=2048,
        ),
        tiny=dict(
            model=f"{TINY}/llama",
            data=train_pairs,
            held_out=held_out_pairs,
            dtype="float32",
            max_new_tokens=64,
            config=dict(
                per_device_train_batch_size=8,
                gradient_accumulation_steps=1,
                learning_rate=5e-3,
                max_length=256,
            ),
        ),
    )

    @staticmethod
    def conversation(row: dict) -> dict:
        """A row of OSS-Instruct or of sanitized MBPP, or one in any form that `sft_recipes` reads."""
        if "problem" in row and "solution" in row:
            return {"prompt": row["problem"], "completion": row["solution"]}
        return from_mbpp(row) if "test_list" in row else row

    @staticmethod
    def score(reply: dict, expected: dict) -> dict[str, float]:
        return {"python_passes": scores.python_passes(reply, expected)}


def from_mbpp(row: dict) -> dict:
    """What MBPP asks, with its tests, which alone name the function (as its paper prompts, arXiv 2108.07732), and its code in a fence."""
    asked = "\n".join([row["prompt"], "", "Your code should pass these tests:", "", *row["test_list"]])
    tests = [*row.get("test_imports", []), *row["test_list"]]
    return {"prompt": asked, "completion": f"```python\n{row['code'].strip()}\n```", "tests": tests}
