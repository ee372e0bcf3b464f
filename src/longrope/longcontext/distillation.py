"""Distillation: what the trained model is to keep of the original one, its teacher, on short sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from longrope.errors import LongRopeError
from longrope.models.backbone import backbone_of


@dataclass(frozen=True, eq=False)
class Distillation:
    """The original model, whose distribution and hidden states the trained one is to keep on short sequences.

    Args:
        teacher: Frozen model with the original RoPE.
        weight: Share of the cross-entropy to the teacher's distribution in the loss of short sequences, from 0 to 1.
        longest: Positions below which a sequence is short: L0 in tokens.
        hidden: Weight of the distance of the hidden states from the teacher's (`distance_of`), beside the losses.
    """

    teacher: PreTrainedModel
    weight: float
    longest: int
    hidden: float = 0.0

    @torch.no_grad()
    def output(
        self, input_ids: Tensor, position_ids: Tensor | None, masks_for: Callable[[PreTrainedModel], dict[str, Any]]
    ) -> Any:
        """Return the output of the teacher's backbone; None where a sequence is longer.

        Args:
            input_ids: Token ids, ``(rows, tokens)``.
            position_ids: Positions, ``(rows or 1, tokens)``; 0, 1, 2 … if None.
            masks_for: Function that returns the other inputs of a model's backbone.
        """
        last = input_ids.shape[1] - 1 if position_ids is None else int(position_ids.max())
        if last >= self.longest:
            return None
        self.teacher.to(input_ids.device)  # pyright: ignore[reportArgumentType]
        inputs: dict[str, Any] = {"input_ids": input_ids, "position_ids": position_ids, **masks_for(self.teacher)}
        return backbone_of(self.teacher)(**inputs, use_cache=False, output_hidden_states=self.hidden > 0)


def distance_of(states: Sequence[Tensor], teacher_states: Sequence[Tensor]) -> Tensor:
    """Return how far hidden states are from a teacher's: one minus the cosine, summed over tokens, mean over layers.

    After the short-text distillation of LongReD (arXiv 2502.07365), which takes some of the layers. The backward pass
    computes the distance again, so that it saves nothing but the states.

    Args:
        states: Embeddings, then the output of each layer, ``(rows, tokens, hidden)``, as transformers gives them.
        teacher_states: The same of the teacher.

    Raises:
        LongRopeError: If they differ in number or in size.
    """
    shapes = [[tuple(state.shape) for state in of_one or ()] for of_one in (states, teacher_states)]
    if shapes[0] != shapes[1] or len(shapes[0]) < 2:
        raise LongRopeError(
            f"distill.hidden: the model gives {len(shapes[0])} hidden states and its teacher {len(shapes[1])}, or of "
            "other sizes. Leave hidden out, or take a teacher of the same architecture."
        )
    layers = list(zip(states, teacher_states, strict=True))[1:]
    distances = [checkpoint(_distance, *layer, use_reentrant=False, preserve_rng_state=False) for layer in layers]
    return torch.stack(distances).mean()  # pyright: ignore[reportArgumentType]


def _distance(states: Tensor, teacher_states: Tensor) -> Tensor:
    return (1 - cosine_similarity(states.float(), teacher_states.float(), dim=-1)).sum()
