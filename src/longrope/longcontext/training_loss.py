"""Training loss without the logits of a whole sequence in memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from longrope.data.training_windows import IGNORED
from longrope.longcontext.cpu_offload import offload_activations
from longrope.longcontext.token_losses import LOGITS_AT_ONCE, head_only
from longrope.models.backbone import backbone_of

COPIES = 4  # float32 copies of a chunk of logits in its backward pass


def use_chunked_loss(model: PreTrainedModel) -> PreTrainedModel:
    """Replace a model's forward by one that returns only the loss, for training, and return the model.

    The head runs on chunks of the sequence, which the backward pass recomputes. It is the model's own head with soft
    caps and scales, so the loss equals that of the model's own forward. `offload_activations` limits what layers save
    on a GPU. The change is permanent.

    The forward needs ``labels``, or ``shift_labels`` that stand beside the token that predicts them, as sequence
    parallelism gives them. The loss is their mean, or their sum over ``num_items_in_batch``, in nats.

    Args:
        model: A causal language model.
    """
    plain = partial(type(model).forward, model)

    def forward(
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **_: Any,
    ) -> CausalLMOutput:
        if shift_labels is None:
            assert labels is not None
            shift_labels = pad(labels[:, 1:], (0, 1), value=IGNORED)
        with offload_activations(input_ids.device):
            hidden = backbone_of(model)(
                input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, use_cache=False
            ).last_hidden_state
        size = max(1, LOGITS_AT_ONCE // (COPIES * len(input_ids) * model.config.get_text_config().vocab_size))
        total = torch.zeros((), device=hidden.device)
        for start in range(0, input_ids.shape[1], size):
            chunk = slice(start, start + size)
            inputs = (model, plain, input_ids[:, chunk], hidden[:, chunk], shift_labels[:, chunk])
            total = total + checkpoint(_sum_of_losses, *inputs, use_reentrant=False)
        count = (shift_labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutput(loss=total / count)  # pyright: ignore[reportArgumentType]

    model.forward = forward
    return model


def _sum_of_losses(model: PreTrainedModel, plain: Any, tokens: Tensor, hidden: Tensor, targets: Tensor) -> Tensor:
    with head_only(model, plain) as logits_of:
        logits = logits_of(tokens, hidden).flatten(0, 1).float()
    return cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")
