"""Does a model find what was planted in a long text? Exact recall of `key = word word` lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from longrope.data.recalls import Recall, make_recall
from longrope.evaluation.loss import head_only

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Retrieval:
    """Share of the trials that were right, its standard error, and the mean loss of the answers' tokens in nats."""

    length: int
    rate: float
    standard_error: float
    loss: float


def retrieval(
    model: PreTrainedModel,
    tokens: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    trials: int = 100,
    seed: int = 0,
    done: Callable[[int], object] | None = None,
) -> Retrieval:
    """Plant one line at a random depth of a text, ask for it at the end; right is what greedy decoding gets whole.

    Args:
        model: patched or not.
        tokens: texts to plant in, in turn, ``(documents, at least length)``.
        tokenizer: of the model.
        length: of every text in tokens, line and question included.
        trials: texts.
        seed: of lines and depths.
        done: called with the number of finished trials.
    """
    rng, right, losses = np.random.default_rng(seed), [], []
    for trial in range(trials):
        recall = make_recall(tokens[trial % len(tokens)], tokenizer, rng=rng, length=length)
        loss, correct = answer(model, recall)
        right.append(correct)
        losses.append(loss)
        if done is not None:
            done(trial + 1)
    rate = float(np.mean(right))
    return Retrieval(length, rate, float(np.sqrt(rate * (1 - rate) / trials)), float(np.mean(losses)))


@torch.inference_mode()
def answer(model: PreTrainedModel, recall: Recall) -> tuple[float, bool]:
    """The mean loss of an answer's tokens, and whether each is the most likely one, given those before it."""
    tokens = torch.from_numpy(recall.tokens)[None].to(model.device)
    wanted = torch.from_numpy(np.flatnonzero(recall.answers)).to(model.device)
    hidden: Tensor = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[:, wanted - 1]
    with head_only(model) as logits_of:
        logits = logits_of(tokens[:, wanted - 1], hidden)[0].float()
    targets = tokens[0, wanted]
    return float(cross_entropy(logits, targets)), bool((logits.argmax(-1) == targets).all())
