"""Choose a learning rate by a few steps at each of several rates, from the same weights on the same sequences."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from longrope.errors import LongRopeError
from longrope.models.patch import evaluating
from longrope.stages.trainer_arguments import CHECKPOINTING
from longrope.storage.atomic import write_json

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
STEPS = 6  # at each rate
JUDGED = 6  # sequences that compare the rates, after those of the steps
CLIP = 1.0  # largest norm of a gradient, as in the Trainer


def choose_rate(trainer: Trainer, sequences_a_step: int, file: Path) -> float:
    """Return the rate whose few steps lower the loss most, on the training sequences after those of the steps.

    A training with fewer sequences begins again with the first one, which the steps have seen. The weights are as
    before afterwards. The losses go to ``file``; where it exists, its rate is taken.

    Args:
        trainer: Trainer of the model, with its training sequences.
        sequences_a_step: Sequences of one optimizer step.
        file: JSON file of the rate and the loss after each rate's steps, in nats.

    Raises:
        LongRopeError: If several processes train, or the loss is not finite or far higher after steps at every rate.
    """
    if file.exists():
        return json.loads(file.read_text())["rate"]
    if trainer.args.world_size > 1:
        raise LongRopeError(
            'finetune.rate = "auto": the test of rates runs in one process. Give the rate as a number, such as 2e-5.'
        )
    data: Any = trainer.train_dataset
    collate: Any = trainer.data_collator
    count = len(data)
    batches = [collate([data[i % count]]) for i in range(STEPS * sequences_a_step + JUDGED)]
    steps, judged = batches[:-JUDGED], batches[-JUDGED:]
    model: Any = trainer.model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    saved = [parameter.detach().to("cpu", copy=True) for parameter in trained]
    if getattr(trainer.args, CHECKPOINTING):  # as the Trainer will
        getattr(model, f"{CHECKPOINTING}_enable")({"use_reentrant": False})
    model.train()
    before = _mean_loss(trainer, judged)
    losses: dict[float, float] = {}
    for rate in RATES:
        with _same_dropout(trainer.args):
            _take_steps(trainer, trained, steps, sequences_a_step, rate)
        losses[rate] = _mean_loss(trainer, judged)
        with torch.no_grad():
            for parameter, values in zip(trained, saved, strict=True):
                parameter.copy_(values)
        if not losses[rate] < before + 1:  # larger rates diverge too
            break
    rate, best = min(losses.items(), key=lambda pair: pair[1] if math.isfinite(pair[1]) else math.inf)
    if not best < before + 1:
        raise LongRopeError(
            f'finetune.rate = "auto": training diverges at once. The loss is {before:.3f}, and after {STEPS} steps at '
            f'{rate:g} it is {best:.3f}. Try dtype = "float32", other factors, or a lower rate as a number.'
        )
    write_json(
        file, {"rate": rate, "loss_before": before, "losses": {f"{rate:g}": loss for rate, loss in losses.items()}}
    )
    return rate


@contextmanager
def _same_dropout(arguments: Any) -> Iterator[None]:
    """Draw the same random numbers in every such block, and none of those that the training draws afterwards."""
    device: torch.device = arguments.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(arguments.seed)
        yield


def _take_steps(
    trainer: Trainer, trained: Sequence[Tensor], batches: Sequence[Any], sequences_a_step: int, rate: float
) -> None:
    betas = (0.9, trainer.args.adam_beta2)
    # by default CUDA updates all parameters at once, in a copy of all of them
    fused = trainer.args.device.type == "cuda"
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=betas, weight_decay=0.0, foreach=False, fused=fused)
    for start in range(0, len(batches), sequences_a_step):
        for batch in batches[start : start + sequences_a_step]:
            (_loss(trainer, batch) / sequences_a_step).backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _mean_loss(trainer: Trainer, batches: Sequence[Any]) -> float:
    with torch.no_grad(), evaluating(trainer.model):  # pyright: ignore[reportArgumentType]
        return sum(float(_loss(trainer, batch)) for batch in batches) / len(batches)


def _loss(trainer: Trainer, batch: dict[str, Tensor]) -> Tensor:
    model: Any = trainer.model
    with trainer.accelerator.autocast():
        return model(**{name: values.to(trainer.args.device) for name, values in batch.items()}).loss
