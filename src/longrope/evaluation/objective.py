"""What a search minimises: plain functions from a `Scaling` to a loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from transformers import PreTrainedModel

from longrope.evaluation.perplexity import model_losses
from longrope.rope import Scaling


def perplexity_objective(model: PreTrainedModel, tokens: np.ndarray, *, batch: int = 1) -> Callable[[Scaling], float]:
    """The mean loss in nats (log perplexity) of some documents under given factors.

    Args:
        model: a causal language model.
        tokens: ``(documents, length)``.
        batch: documents in one forward pass.
    """

    def loss(scaling: Scaling) -> float:
        return float(model_losses(model, scaling, tokens, batch=batch).mean(dtype=np.float64))

    return loss
