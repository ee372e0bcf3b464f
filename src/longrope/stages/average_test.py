"""Choose how much of the original weights to mix into trained ones, by losses of held-out text at L0 and beyond."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from longrope.data.training_windows import TrainingWindows
from longrope.longcontext.sparse_attention import use_weighted_attention
from longrope.longcontext.training_loss import use_chunked_loss
from longrope.models.average import mix_weights
from longrope.models.patch import install_factors
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.storage.atomic import write_json

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4)
WINDOWS = 16  # every second one holds short rows


def choose_average(
    trained: PreTrainedModel, original: PreTrainedModel, long: Scaling, windows: TrainingWindows, file: Path
) -> float:
    """Return the share of `SHARES` with the lowest sum of two losses: of short rows, and of long windows.

    Short rows see the original RoPE. Afterwards the trained model has other weights and factors in place, so that it is
    of no further use.

    Args:
        trained: Trained weights, in float32; changed.
        original: Original weights.
        long: Long factors.
        windows: Windows of held-out documents, half of them short rows.
        file: JSON file for both losses of each share, in nats.
    """
    rope = Rope.of(original)
    if windows.sparse:
        use_weighted_attention(trained)
    use_chunked_loss(install_factors(trained, Extension.of(rope, long)))
    losses: dict[float, dict[str, float]] = {}
    for before, share in zip((0.0, *SHARES), SHARES, strict=False):
        mix_weights(trained, original, 1 - (1 - share) / (1 - before))
        losses[share] = _losses(trained, windows, rope.original_length)
    best = min(losses, key=lambda share: losses[share]["short"] + losses[share]["long"])
    write_json(file, {"average": best, "losses": {f"{share:g}": values for share, values in losses.items()}})
    return best


@torch.no_grad()
def _losses(model: Any, windows: TrainingWindows, original_length: int) -> dict[str, float]:
    """Return the mean losses of the windows within L0 (``short``) and of the others (``long``)."""
    losses: dict[str, list[float]] = {"short": [], "long": []}
    for index in range(len(windows)):
        inputs = {name: torch.from_numpy(values).to(model.device) for name, values in windows[index].items()}
        within = int(inputs["position_ids"].max()) < original_length
        losses["short" if within else "long"].append(float(model(**inputs).loss))
    return {kind: sum(values) / max(len(values), 1) for kind, values in losses.items()}
