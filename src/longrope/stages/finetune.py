"""Fine-tune a model with the factors of its stage in place, on transformers' Trainer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from longrope.data.training_windows import Windows
from longrope.errors import LongRopeError
from longrope.longcontext.tiling import tile_mlps
from longrope.longcontext.training_loss import use_chunked_loss
from longrope.models.device_memory import explain_out_of_memory
from longrope.models.patch import install_factors
from longrope.scaling import Extension, Scaling
from longrope.stages.plan_tables import Finetune
from longrope.stages.trainer_arguments import training_arguments
from longrope.stages.trainer_checkpoints import Watcher, last_whole, writing


@dataclass(frozen=True)
class TrainingSummary:
    """What a fine-tuning did: optimizer steps, tokens, the mean loss of its last tenth, seconds (of this call)."""

    steps: int
    tokens: int
    loss: float
    seconds: float


def finetune(
    model: PreTrainedModel,
    factors: Scaling | Extension,
    windows: Windows,
    how: Finetune,
    *,
    folder: Path,
    output: Path,
    device: str = "cpu",
    report_to: str = "none",
    watch: Callable[[int, float], None] | None = None,
) -> TrainingSummary | None:
    """Train a model's weights with factors in place.

    Under ``accelerate launch`` or ``torchrun`` the sequences of a step are spread over all processes, or over all
    groups of processes that share a sequence.

    Args:
        model: plain, on the CPU, in float32 (mixed precision is `Finetune.dtype`); it is changed.
        factors: a static `Scaling`, or for mixed windows an `Extension`, which gives short rows the original RoPE.
        windows: ``how.batch`` for every step.
        how: learning rate and the rest.
        folder: of checkpoints and logs; an interrupted run goes on from its last whole checkpoint.
        output: folder for the weights, LoRA merged.
        device: where to train.
        report_to: Trainer's: tensorboard, wandb, trackio, none …
        watch: called with the step and the loss, in the first process.

    Returns:
        What was done; None in all processes but the first.

    Raises:
        LongRopeError: if the loss or a gradient is no finite number, memory runs out or a folder cannot be written (the
            last whole checkpoint is kept), if ``batch`` does not divide by the number of processes, or if ``peft`` is
            missing.
    """
    began = time.monotonic()
    use_chunked_loss(install_factors(model, factors))
    trained = _with_lora(model, how) if how.lora else model
    steps, cached = len(windows) // how.batch, getattr(model.config, "use_cache", None)
    arguments = training_arguments(how, steps, folder, device, report_to)
    trainer = Trainer(
        model=trained,
        args=arguments,
        train_dataset=windows,  # pyright: ignore[reportArgumentType]
        data_collator=_collate,
        callbacks=[Watcher(watch)],
    )
    tile_mlps(model)  # after what the trainer may have put in place of their forward
    for printing in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printing)
    first = trainer.is_world_process_zero()
    remedy = "use finetune.window, finetune.lora or more devices"
    with writing(folder), explain_out_of_memory(windows.size, f"while fine-tuning on {arguments.device}", remedy):
        trainer.train(resume_from_checkpoint=last_whole(folder, remove=first))
        if cached is not None:
            model.config.use_cache = cached  # which the trainer has turned off
        _save(trainer, output, merged=how.lora > 0)
    if not first:
        return None
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    last = float(np.mean(losses[-max(1, len(losses) // 10) :]))
    return TrainingSummary(steps, len(windows) * windows.size, last, time.monotonic() - began)


def _with_lora(model: PreTrainedModel, how: Finetune) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise LongRopeError(
            f"finetune.lora = {how.lora} needs the package peft: pip install 'longrope[lora]'"
        ) from None
    set_seed(how.seed)  # of the adapters' first weights
    return get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=how.lora, lora_alpha=2 * how.lora, target_modules="all-linear")
    )


def _save(trainer: Trainer, output: Path, *, merged: bool) -> None:
    """Write the weights; every process takes part, as each may hold a share of them.

    Not by the trainer's own method: with FSDP's sharded state dicts, which is its default, that writes nothing.
    """
    plain: Any = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    plain = plain.merge_and_unload() if merged else plain
    state = trainer.accelerator.get_state_dict(plain if merged else trainer.model_wrapped)
    if trainer.is_world_process_zero():
        plain.save_pretrained(output, state_dict=state)


def _collate(items: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    (item,) = items
    return {name: torch.from_numpy(array) for name, array in item.items()}
