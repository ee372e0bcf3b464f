"""Rank closed forms as starts of an extension, by their loss on a few training windows of held-out text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch

from longrope.data.training_windows import TrainingWindows
from longrope.evaluation.statistics import mean_error
from longrope.longcontext.sparse_attention import use_weighted_attention
from longrope.longcontext.training_loss import use_chunked_loss
from longrope.models.patch import patch
from longrope.scaling import Scaling
from longrope.schemes import attention_factor, scheme
from longrope.stages.plan_advice import NEEDLES
from longrope.stages.plan_tables import Finetune, Stage
from longrope.stages.run_folder import StagedRun

STARTS = ("yarn", "ramp", "heuristic")
LEAST_WINDOWS, MOST_WINDOWS = 8, 16


def rank_starts(run: StagedRun, finetune: Finetune, count: int) -> dict[str, list[float]]:
    """Return the losses of each closed form of `STARTS`, in nats, on windows like those that the fine-tuning trains on.

    Half of them have planted lines whose answers weigh more: factors with the lowest perplexity may lose recall.

    Args:
        run: Run whose plan names the model, the documents and the length.
        finetune: Settings of the windows.
        count: Number of windows, at most 16.

    Raises:
        LongRopeError: If the documents are too short for a window.
    """
    least = finetune.model_copy(update={"steps": 1, "batch": 1, "tokens": None})  # the training is not drawn here
    stage = Stage(length=run.plan.length, finetune=least)
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
    losses: dict[str, list[float]] = {}
    for name in STARTS:
        attention = attention_factor(run.plan.attention, run.rope, run.plan.length)
        scaling = replace(scheme(name, run.rope, run.plan.length), attention_factor=attention)
        losses[name] = _losses(model, scaling, windows)
    return losses


def best_start(losses: Mapping[str, Sequence[float]]) -> str:
    """Return the closed form with the lowest mean loss, if it is better than the first one by two standard errors.

    The errors are those of the paired differences. Else it is the first one.

    >>> best_start({"yarn": [2.0, 3.0, 4.0], "ramp": [1.9, 2.9, 3.8]})
    'ramp'
    >>> best_start({"yarn": [2.0, 3.0, 4.0], "ramp": [1.5, 3.1, 3.9]})
    'yarn'
    """
    first = next(iter(losses))
    best = min(losses, key=lambda name: fmean(losses[name]))
    difference, error = mean_error([a - b for a, b in zip(losses[best], losses[first], strict=True)])
    return best if difference < -2 * (error or 0.0) else first


@torch.no_grad()
def _losses(model: Any, scaling: Scaling, windows: TrainingWindows) -> list[float]:
    with patch(model, scaling):
        use_chunked_loss(model)
        try:
            losses: list[float] = []
            for index in range(len(windows)):
                inputs = {name: torch.from_numpy(values).to(model.device) for name, values in windows[index].items()}
                losses.append(float(model(**inputs).loss))
        finally:
            del model.forward
    return losses
