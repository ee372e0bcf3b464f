"""The arguments of transformers' Trainer for a fine-tuning, on one process or many."""

from __future__ import annotations

import importlib.util
import math
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import ParallelismConfig
from transformers import TrainingArguments

from longrope.errors import LongRopeError
from longrope.stages.plan_tables import Finetune

# transformers 5 has renamed it
_NAMES = {field.name for field in fields(TrainingArguments)}
CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in _NAMES else "gradient_checkpointing"


def wants_liger(device: str) -> bool:
    """Return whether Liger's kernels are used, which replace parts of transformers for the rest of the process."""
    return device != "cpu" and importlib.util.find_spec("liger_kernel") is not None


def training_arguments(
    settings: Finetune, steps: int, folder: Path, device: str, report_to: str, *, recompute: bool = True
) -> TrainingArguments:
    """Return the Trainer's arguments for a fine-tuning.

    Args:
        settings: Hyperparameters.
        steps: Optimizer steps.
        folder: Folder of checkpoints.
        device: A torch device.
        report_to: Service to report to.
        recompute: Whether the backward pass recomputes each layer (activation checkpointing).

    Raises:
        LongRopeError: If there is no step, or a step's sequences cannot be spread over the processes.
    """
    if not steps:
        raise LongRopeError(f"windows: fewer than batch = {settings.batch}, so no step. Give more, or a smaller batch.")
    cpu = device == "cpu"
    options: dict[str, Any] = {CHECKPOINTING: recompute, f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}}
    if wants_liger(device):  # norms and MLP; the loss is bounded already
        kernels = ("rope", "cross_entropy", "fused_linear_cross_entropy")
        options |= {"use_liger_kernel": True, "liger_kernel_config": dict.fromkeys(kernels, False)}
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=settings.rate if isinstance(settings.rate, float) else 0.0,  # until the test of rates
        lr_scheduler_type=settings.schedule,
        warmup_steps=round(settings.warmup * steps),
        adam_beta2=0.95,
        bf16=settings.dtype == "bfloat16",
        use_cpu=cpu,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=settings.save_every or max(1, math.ceil(steps / 20)),
        save_total_limit=2,
        report_to=report_to,
        seed=settings.seed,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        **options,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one device a process: without a launch, transformers takes them all
    sharing = _processes_of_a_sequence(settings)
    groups = arguments.world_size / sharing  # 0.5 where fewer processes run than are to share a sequence
    sequences, remainder = divmod(settings.batch, groups)
    if remainder or groups % 1:
        raise LongRopeError(
            f"finetune.batch = {settings.batch} does not divide by {arguments.world_size} processes, "
            f"{sharing} a sequence"
        )
    arguments.gradient_accumulation_steps = int(sequences)
    return arguments


def _processes_of_a_sequence(settings: Finetune) -> int:
    """Return the number of processes that accelerate spreads one sequence over (context, sequence or tensor parallel).

    Raises:
        LongRopeError: If these processes would misread the borders of documents or the jumps of positions.
    """
    if os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() != "true":
        return 1
    parallelism = ParallelismConfig()
    if settings.windows == "sparse" and (parallelism.cp_enabled or parallelism.sp_enabled):
        raise LongRopeError(
            'finetune.windows = "sparse": several processes cannot share a sequence whose keys have weights. '
            "Use a whole sequence on each device."
        )
    if settings.short and (parallelism.cp_enabled or parallelism.sp_enabled):
        raise LongRopeError(
            f"finetune.short = {settings.short}: documents would see each other where several processes share "
            "a sequence; use short = 0, or a whole sequence on each device"
        )
    if settings.window is not None and parallelism.sp_enabled:
        raise LongRopeError(
            f"finetune.window = {settings.window}: DeepSpeed takes a jump of positions for the border of a document; "
            "leave it out, or use a whole sequence on each device"
        )
    return parallelism.non_data_parallel_size
