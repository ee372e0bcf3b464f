"""The log-probabilities of a model's next tokens, with the memory of a chunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longrope.longcontext.tiling import tiled_layers
from longrope.longcontext.token_losses import head_only, last_hidden
from longrope.models.device_memory import explain_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.inference_mode()
def next_token_logprobs(model: PreTrainedModel, tokens: Sequence[int], count: int) -> Tensor:
    """Return the log-probabilities of every token after each of the last tokens of a text.

    Args:
        model: A causal language model, patched or not.
        tokens: Token ids of the text.
        count: Number of last tokens.

    Returns:
        Nats, float32 ``(count, vocabulary)``, on the CPU.

    Raises:
        LongRopeError: If memory runs out.
    """
    ids = torch.tensor([tokens], device=model.device)
    with explain_out_of_memory(len(tokens), f"on {model.device}", "lower the length, or use dtype bfloat16"):
        with tiled_layers(model, shape=(1, len(tokens))):
            hidden = last_hidden(model, ids)
        with head_only(model) as logits_of:
            logits = logits_of(ids[:, -count:], hidden[:, -count:].to(ids.device))
    return logits.float().log_softmax(-1).cpu()
