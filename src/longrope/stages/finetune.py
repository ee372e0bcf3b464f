"""Fine-tune a model with the factors of its stage in place, on transformers' Trainer."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from longrope.cost.model_shape import ModelShape
from longrope.cost.peak_memory import recomputes_layers
from longrope.data.training_windows import TrainingWindows
from longrope.errors import LongRopeError
from longrope.longcontext.distillation import Distillation
from longrope.longcontext.sparse_attention import check_sparse_windows, use_weighted_attention
from longrope.longcontext.tiling import tile_mlps, why_whole_layers
from longrope.longcontext.training_loss import use_chunked_loss
from longrope.models.adapter import no_peft_warnings
from longrope.models.device_memory import explain_out_of_memory
from longrope.models.load import load
from longrope.models.lora import add_lora, autocast_alone_casts
from longrope.models.patch import install_factors
from longrope.models.rotary_slot import find_rotary_slot
from longrope.scaling import Extension, Scaling
from longrope.stages.plan_tables import Finetune
from longrope.stages.rate_test import choose_rate
from longrope.stages.trainer_arguments import training_arguments
from longrope.stages.trainer_checkpoints import TrainingGuard, explain_disk_errors, last_complete_checkpoint
from longrope.storage.atomic import write_json

BEGUN = "begun.json"  # in the folder of a training, with the digest of what it trains


@dataclass(frozen=True)
class TrainingSummary:
    """The figures of a fine-tuning.

    Args:
        steps: Optimizer steps.
        tokens: Tokens of all sequences.
        loss: Mean loss of the last tenth of the steps.
        seconds: Seconds of this call.
        rate: Highest learning rate.
    """

    steps: int
    tokens: int
    loss: float
    seconds: float
    rate: float


def finetune(
    model: PreTrainedModel,
    scaling: Scaling | Extension,
    windows: TrainingWindows,
    settings: Finetune,
    *,
    folder: str | Path,
    device: str | torch.device = "cpu",
    report_to: str = "none",
    on_progress: Callable[[int, float], None] | None = None,
) -> TrainingSummary | None:
    """Train a model's weights with factors in place; the trained weights, or adapter, go to ``folder / "model"``.

    Under ``accelerate launch`` or ``torchrun`` the sequences of a step are spread over all processes, or over all
    groups of processes that share a sequence.

    Args:
        model: Plain model on the CPU, in float32 (mixed precision is `Finetune.dtype`); it is changed.
        scaling: Static factors, or for mixed windows an `Extension`, which gives short rows the original RoPE.
        windows: Training sequences, ``settings.batch`` for every step.
        settings: Learning rate and the other hyperparameters.
        folder: Folder of checkpoints and logs; an interrupted run continues from its last complete checkpoint. A folder
            belongs to one training: other settings, factors or windows are refused.
        device: A torch device.
        report_to: Service to report to, as transformers' Trainer names it: tensorboard, wandb, trackio, none …
        on_progress: Function that is called with the step and the loss, in the first process.

    Returns:
        The figures of the training; None in all processes but the first.

    Raises:
        LongRopeError: If the loss or a gradient is not finite, memory runs out or a folder cannot be written (the
            last complete checkpoint is kept), if ``batch`` does not divide by the number of processes, if ``windows``
            are fewer than ``batch``, if ``folder`` holds another training, or if ``peft`` is missing.
    """
    started = time.monotonic()
    folder = Path(folder)
    if settings.windows == "sparse":
        _check_sparse_windows(model)
        use_weighted_attention(model)
    distillation = _distillation(model, settings)
    use_chunked_loss(install_factors(model, scaling), distillation)
    steps, use_cache = len(windows) // settings.batch, getattr(model.config, "use_cache", None)
    shape, mixed = ModelShape.of(model.config, settings.dtype, str(device)), settings.dtype == "bfloat16"
    recompute = recomputes_layers(shape, windows.size, lora=settings.lora, mixed=mixed)
    arguments = training_arguments(settings, steps, folder, str(device), report_to, recompute=recompute)
    trainer = Trainer(
        model=_with_lora(model, settings) if settings.lora else model,
        args=arguments,
        train_dataset=windows,  # pyright: ignore[reportArgumentType]
        data_collator=_collate,
        callbacks=[TrainingGuard(on_progress)],
    )
    tile_mlps(model)  # after the trainer, which may replace their forward
    for printing in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printing)
    first = trainer.is_world_process_zero()
    remedy = "use finetune.window, finetune.lora or more devices"
    with (
        no_peft_warnings(),
        autocast_alone_casts(trainer.model) if settings.lora and mixed else nullcontext(),
        explain_disk_errors(folder),
        explain_out_of_memory(windows.size, f"while fine-tuning on {arguments.device}", remedy),
    ):
        if first:
            _claim(folder, settings, scaling, windows)
        if settings.rate == "auto":
            arguments.learning_rate = choose_rate(trainer, settings.batch, folder / "rate.json")
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder, remove_others=first))
        if use_cache is not None:
            model.config.use_cache = use_cache  # which the trainer has turned off
        _save(trainer, folder / "model", merge=settings.lora > 0 and settings.merge)
    if not first:
        return None
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    loss = float(np.mean(losses[-max(1, len(losses) // 10) :]))
    seconds = time.monotonic() - started
    return TrainingSummary(steps, len(windows) * windows.size, loss, seconds, arguments.learning_rate)


def _claim(folder: Path, settings: Finetune, scaling: Scaling | Extension, windows: TrainingWindows) -> None:
    """Record what a folder trains, and refuse one that holds another training.

    Raises:
        LongRopeError: If it does.
    """
    ends = [values.tobytes() for i in (0, -1) for _, values in sorted(windows[i % len(windows)].items())]
    settled = settings.model_dump_json(exclude={"save_every"}) + scaling.to_json() + str(len(windows))
    digest = hashlib.sha256(b"".join([settled.encode(), *ends])).hexdigest()
    path = folder / BEGUN
    if path.exists() and json.loads(path.read_text())["digest"] != digest:
        raise LongRopeError(
            f"folder = {str(folder)!r}: holds a training with other settings, factors or windows. Give another folder."
        )
    write_json(path, {"digest": digest})


def _check_sparse_windows(model: PreTrainedModel) -> None:
    """Raise a LongRopeError if a model cannot train on windows that leave text out.

    The config names only some of the layers that need every token, such as convolutions; the model itself shows all.
    """
    check_sparse_windows(model.config)
    reason = why_whole_layers(model)
    if reason:
        raise LongRopeError(
            f'finetune.windows = "sparse": model type {model.config.model_type!r} needs every token ({reason}). '
            "Train on whole sequences: leave windows and window out."
        )


def _distillation(model: PreTrainedModel, settings: Finetune) -> Distillation | None:
    """Return the teacher of short sequences: the one that the settings name, or the model as it is before training."""
    distill = settings.distill
    if distill is None or not distill.has_teacher:
        return None
    name, rope = distill.teacher, find_rotary_slot(model).rope
    teacher = copy.deepcopy(model) if name is None else load(name, dtype=settings.dtype)[0]
    for parameter in teacher.parameters():  # not the frequencies of its RoPE, which would be rounded
        parameter.data = parameter.data.to(getattr(torch, settings.dtype))
    if name is not None and settings.windows == "sparse":
        use_weighted_attention(teacher)
    return Distillation(teacher.eval().requires_grad_(False), distill.weight, rope.original_length, distill.hidden)


def _with_lora(model: PreTrainedModel, settings: Finetune) -> Any:
    set_seed(settings.seed)  # of the adapters' first weights
    return add_lora(model, settings.lora)


def _save(trainer: Trainer, output: Path, *, merge: bool) -> None:
    """Write the weights; every process takes part, as each may hold a share of them.

    The trainer's own method is not used: with FSDP's sharded state dicts, which is its default, it writes nothing.
    """
    plain: Any = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    plain = plain.merge_and_unload() if merge else plain
    state = trainer.accelerator.get_state_dict(plain if merge else trainer.model_wrapped)
    if trainer.is_world_process_zero():
        plain.save_pretrained(output, state_dict=state)


def _collate(batch: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    (sequence,) = batch
    return {name: torch.from_numpy(array) for name, array in sequence.items()}
