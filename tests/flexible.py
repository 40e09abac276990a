"""FlexAttention on the CPU, forward and backward, uncompiled: what CUDA runs but for the kernel."""

from contextlib import contextmanager

import pytest
import torch.nn.attention.flex_attention as flex
from transformers.integrations import flex_attention as integration

from sft_recipes.attention import interface


def uncompiled(query, key, value, training=False, **options):
    return flex.flex_attention(query, key, value, **options)


@contextmanager
def flexible_on_the_cpu():
    """Within the block packed rows go through FlexAttention. Gives a list with an entry for each call.

    torch refuses a gradient there because its compiled kernel has none; its uncompiled one has.
    """
    calls, own = [], interface.flex_attention_forward

    def counted(*args, **options):
        calls.append(args[4])
        return own(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interface, "FLEXIBLE", {"cuda", "cpu"})
        patch.setattr(interface, "flex_attention_forward", counted)
        patch.setattr(integration, "compile_friendly_flex_attention", uncompiled)
        patch.setattr(flex, "_validate_device", lambda *tensors: None)
        yield calls
