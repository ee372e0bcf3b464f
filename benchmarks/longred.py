"""Terms after LongReD's for the distillation of short rows (arXiv 2502.07365), beside the distillation of logits.

Hidden states: the outputs of the layers keep the direction of the original model's. The term is one minus the cosine, a
mean over layers and tokens. Skipped positions: half of the short rows have one jump in their positions, up to the
target length; the teacher reads them without it. These rows take the factors of the training, as all do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from longrope.longcontext.training_loss import Distillation, use_chunked_loss
from longrope.models.backbone import backbone_of
from longrope.stages import finetune as finetuning


class PlainPositions(Distillation):
    """A teacher that reads short rows at positions 0, 1, 2 …, whatever the positions of the trained model."""

    def hidden_states(
        self, input_ids: Tensor, position_ids: Tensor | None, masks_for: Callable[..., Any]
    ) -> Tensor | None:
        """Return the teacher's last hidden states; None where a row is not short."""
        if input_ids.shape[1] > self.longest:
            return None
        return super().hidden_states(input_ids, None, masks_for)


def outputs_of_layers(model: PreTrainedModel) -> list[Tensor]:
    """Return a list that gets the output of each layer whenever the model runs."""
    outputs: list[Tensor] = []
    for layer in backbone_of(model).layers:
        layer.register_forward_hook(lambda _, __, out: outputs.append(out[0] if isinstance(out, tuple) else out))
    return outputs


def use_loss(weight: float, jump: int, model: PreTrainedModel, distillation: Distillation) -> PreTrainedModel:
    """Make a model's forward return the training loss with LongReD's terms.

    Args:
        weight: Weight of the term of the hidden states; 0 for none.
        jump: Longest jump of the positions of short rows, in tokens; 0 for none.
        model: Model to train.
        distillation: Its teacher.
    """
    if jump:
        distillation = PlainPositions(distillation.teacher, distillation.weight, distillation.longest)
    use_chunked_loss(model, distillation)
    forward, draw = model.forward, torch.Generator().manual_seed(0)
    layers = (outputs_of_layers(model), outputs_of_layers(distillation.teacher)) if weight else ([], [])

    @wraps(forward)
    def with_terms(input_ids: Tensor, **named: Any) -> Any:
        for outputs in layers:
            outputs.clear()
        rows, size = input_ids.shape
        if jump and size <= distillation.longest and torch.rand((), generator=draw) < 0.5:
            first = int(torch.randint(1, size, (), generator=draw))
            positions = torch.arange(size).repeat(rows, 1)
            positions[:, first:] += int(torch.randint(jump - size, (), generator=draw))
            named |= {"position_ids": positions, "attention_mask": torch.ones_like(input_ids)}
        result = forward(input_ids, **named)
        ours, theirs = layers
        if theirs:
            similar = torch.stack([cosine_similarity(a, b, dim=-1).mean() for a, b in zip(ours, theirs, strict=True)])
            result.loss = result.loss + weight * (1 - similar.mean()) * rows * size / named["num_items_in_batch"]
        return result

    model.forward = with_terms
    return model


@contextmanager
def terms(*, weight: float = 0.0, jump: int = 0) -> Iterator[None]:
    """Train with LongReD's terms inside the block."""
    before = finetuning.use_chunked_loss
    finetuning.use_chunked_loss = lambda model, distillation: use_loss(weight, jump, model, distillation)
    try:
        yield
    finally:
        finetuning.use_chunked_loss = before
