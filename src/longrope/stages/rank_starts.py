"""Rank closed forms as starts of an extension, by their loss on a few training windows of held-out text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from longrope.data.training_windows import TrainingWindows
from longrope.longcontext.sparse_attention import use_weighted_attention
from longrope.longcontext.training_loss import use_chunked_loss
from longrope.models.patch import patch
from longrope.scaling import Scaling
from longrope.schemes import attention_factor, scheme
from longrope.stages.plan_advice import NEEDLES
from longrope.stages.plan_tables import Finetune, Stage
from longrope.stages.run_folder import StagedRun

STARTS = ("yarn", "ramp", "heuristic")
LEAST_WINDOWS, MOST_WINDOWS = 4, 16
IMPROVES = 0.01  # nats a token, by which a closed form must be better than the first one


def rank_starts(run: StagedRun, finetune: Finetune, count: int, starts: Sequence[str] = STARTS) -> dict[str, float]:
    """Return the mean loss of each closed form, in nats, on windows like those that the fine-tuning trains on.

    Half of them have planted lines whose answers weigh more: factors with the lowest perplexity may lose recall.

    On `tiny` at 8x and SmolLM2 at 4x, sparse windows of 1,024 and 2,048 tokens order these closed forms as whole
    documents do.

    Args:
        run: Run whose plan names the model, the documents and the length.
        finetune: Settings of the windows.
        count: Number of windows, at most 16.
        starts: Names of schemes.
    """
    stage = Stage(length=run.plan.length, finetune=finetune.model_copy(update={"steps": 1, "tokens": None}))
    windows = replace(
        run.data.held_out_windows(stage),
        short=0.0,
        count=min(count, MOST_WINDOWS),
        needles=NEEDLES,
        answer_weight=finetune.answers,
    )
    model, _ = run.load(run.model, dtype=run.dtype, device=run.device)
    if windows.sparse:
        use_weighted_attention(model)
    losses: dict[str, float] = {}
    for name in starts:
        attention = attention_factor(run.plan.attention, run.rope, run.plan.length)
        scaling = replace(scheme(name, run.rope, run.plan.length), attention_factor=attention)
        losses[name] = _mean_loss(model, scaling, windows)
    return losses


def best_start(losses: Mapping[str, float]) -> str:
    """Return the closed form with the lowest loss; the first one unless another is clearly better.

    >>> best_start({"yarn": 2.0, "ramp": 1.995}), best_start({"yarn": 2.0, "ramp": 1.9})
    ('yarn', 'ramp')
    """
    first = next(iter(losses))
    best = min(losses, key=losses.__getitem__)
    return best if losses[best] < losses[first] - IMPROVES else first


@torch.no_grad()
def _mean_loss(model: Any, scaling: Scaling, windows: TrainingWindows) -> float:
    with patch(model, scaling):
        use_chunked_loss(model)
        try:
            total = 0.0
            for index in range(len(windows)):
                inputs = {name: torch.from_numpy(values).to(model.device) for name, values in windows[index].items()}
                total += float(model(**inputs).loss)
        finally:
            del model.forward
    return total / len(windows)
