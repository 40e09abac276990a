"""A plan for Llama 3.1 405B, all weights, on 1,024 devices.

To be counted before anybody pays for it: 4.2 M tokens a step at a context of 8,192, 2,400 steps, 10 B tokens, FSDP2. Two devices share
the work on a row, so that 1,024 of them read 512 rows at a time. The shape of the model travels with this project, so `plan` and `check`
run without the Hub; its weights and tokenizer are gated, and a run names them: `--model meta-llama/Llama-3.1-405B`.

Hardware: 1,024 H100 (planned, never run by us); the tiny scale on 2 CPU cores.
Command:  sft-recipes plan frontier-405b --gpus 1024 --gpu h100 --engine fsdp2 --tensor 2
Result:   a plan: 52 of 80 GB on each, 17 hours, 54,000 dollars at a utilisation of 40% and 3 dollars an hour. The tiny scale trains all
          weights of the embedded Llama of 1 M parameters on code: python_passes from 0.00 to 0.33 of 100 held-out requests; one seed.
"""

from sft_recipes import TINY, Recipe, RecipeTrainer, Source, scores
from sft_recipes.tiny.code_pairs import held_out_pairs, train_pairs

CONTEXT = 8192


class Frontier405B(RecipeTrainer):
    recipe = Recipe(
        model=f"{TINY.parent}/shapes/llama-3.1-405b",
        data=Source("allenai/tulu-3-sft-mixture"),  # ODC-BY; 939,000 conversations in `messages`
        held_out=1000,
        chat_template="llama3",
        row_tokens=CONTEXT,
        config=dict(
            max_steps=2400,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=1,
            gradient_checkpointing=True,
            learning_rate=5e-6,
            warmup_steps=0.03,
            max_length=CONTEXT,
            eval_strategy="steps",
            eval_steps=0.1,
        ),
        tiny=dict(
            model=f"{TINY}/llama",
            data=train_pairs,
            held_out=held_out_pairs,
            dtype="float32",
            chat_template="chatml",
            row_tokens=None,
            primary="python_passes",
            max_new_tokens=64,
            config=dict(
                max_steps=-1,
                num_train_epochs=2,
                per_device_train_batch_size=8,
                gradient_checkpointing=False,
                learning_rate=2e-3,
                warmup_steps=0.05,
                max_length=256,
                eval_strategy="epoch",
            ),
        ),
    )

    @staticmethod
    def score(reply: dict, expected: dict) -> dict[str, float]:
        return {"python_passes": scores.python_passes(reply, expected)} if expected.get("tests") else {}
