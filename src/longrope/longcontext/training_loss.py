"""Training loss without the logits of a whole sequence in memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from longrope.data.training_windows import IGNORED
from longrope.errors import LongRopeError
from longrope.longcontext.chunked_sum import sum_over_chunks
from longrope.longcontext.cpu_offload import offload_activations
from longrope.longcontext.distillation import Distillation, distance_of
from longrope.longcontext.sparse_attention import sparse_inputs
from longrope.longcontext.token_losses import head_only, logits_on
from longrope.models.backbone import backbone_of


def use_chunked_loss(model: PreTrainedModel, distillation: Distillation | None = None) -> PreTrainedModel:
    """Replace a model's forward by one that returns only the loss, for training, and return the model.

    The head runs on chunks of the sequence, whose gradients are computed at once. It is the model's own head with soft
    caps and scales, so the loss equals that of the model's own forward. `offload_activations` limits what layers save
    on a GPU. The change is permanent.

    The forward needs ``labels``, or ``shift_labels`` that stand beside the token that predicts them, as sequence
    parallelism gives them. The loss is their mean, or their sum over ``num_items_in_batch``, in nats. It also takes the
    ``weights``, ``chunk_ids``, ``key_bias`` and ``teacher_position_ids`` of `TrainingWindows`.

    Args:
        model: A causal language model.
        distillation: Teacher for the short sequences; None for the labels alone.
    """
    plain = partial(type(model).forward, model)
    sum_of_losses = partial(_sum_of_losses, model, plain, distillation)

    def forward(
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Any = None,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **of_windows: Any,
    ) -> CausalLMOutput:
        if shift_labels is None:
            if labels is None:
                raise LongRopeError("labels = None: after use_chunked_loss a model only trains. Pass labels=input_ids.")
            shift_labels = pad(labels[:, 1:], (0, 1), value=IGNORED)
        if "key_bias" in of_windows and position_ids is not None:
            window = {"chunk_ids": of_windows["chunk_ids"], "key_bias": of_windows["key_bias"]}
            masks_for = partial(sparse_inputs, positions=position_ids, **window)
        else:
            masks_for = partial(_only_mask, attention_mask)
        positions = of_windows.get("teacher_position_ids", position_ids)
        taught: Any = None if distillation is None else distillation.output(input_ids, positions, masks_for)
        distance_weight = 0.0 if distillation is None or taught is None else distillation.hidden
        inputs: Any = {"input_ids": input_ids, "position_ids": position_ids, **masks_for(model)}
        with offload_activations(input_ids.device):
            output = backbone_of(model)(**inputs, use_cache=False, output_hidden_states=distance_weight > 0)
        hidden = output.last_hidden_state
        weights = of_windows.get("weights")
        shift_weights = (shift_labels != IGNORED).float() if weights is None else pad(weights[:, 1:], (0, 1))
        size = max(1, logits_on(hidden.device.type) // (len(input_ids) * model.config.get_text_config().vocab_size))
        arrays = (input_ids, shift_labels, shift_weights, None if taught is None else taught.last_hidden_state)
        total = sum_over_chunks(sum_of_losses, hidden, arrays, _head_weights(model), size)
        if taught is not None and distance_weight:
            total = total + distance_weight * distance_of(output.hidden_states, taught.hidden_states)
        count = (shift_labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutput(loss=total / count)  # pyright: ignore[reportArgumentType]

    model.forward = forward
    return model


def _only_mask(attention_mask: Any, _: PreTrainedModel) -> dict[str, Any]:
    return {"attention_mask": attention_mask}


def _head_weights(model: PreTrainedModel) -> list[Tensor]:
    """Return the trained weights of the modules outside of the backbone, among them the head's, tied or not."""
    within = set(backbone_of(model).modules())
    modules = (module for module in model.modules() if module not in within)
    return [weight for module in modules for weight in module.parameters(recurse=False) if weight.requires_grad]


def _sum_of_losses(
    model: PreTrainedModel,
    plain: Any,
    distillation: Distillation | None,
    hidden: Tensor,
    tokens: Tensor,
    targets: Tensor,
    weights: Tensor,
    teacher_hidden: Tensor | None,
) -> Tensor:
    with head_only(model, plain) as logits_of:
        logits = logits_of(tokens, hidden).float()
    soft_share = 0.0 if distillation is None or teacher_hidden is None else distillation.weight
    losses = torch.zeros(len(logits), device=logits.device)
    if soft_share < 1:
        hard_losses = cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="none")
        losses = (1 - soft_share) * hard_losses
    if soft_share and distillation is not None and teacher_hidden is not None:
        with torch.no_grad(), head_only(distillation.teacher) as teacher_logits_of:
            distribution = teacher_logits_of(tokens, teacher_hidden).float().softmax(dim=-1)
        losses = losses + soft_share * cross_entropy(logits, distribution, reduction="none")
    return (losses * weights.flatten()).sum()
