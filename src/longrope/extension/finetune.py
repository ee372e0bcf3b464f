"""Fine-tune a model with the factors of its stage in place, on transformers' Trainer."""

from __future__ import annotations

import importlib.util
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import ParallelismConfig
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from longrope.data.packing import Windows
from longrope.errors import LongRopeError
from longrope.evaluation.bounded import bound_loss
from longrope.extension.checkpoints import Watcher, last_whole, writing
from longrope.extension.stages import Finetune
from longrope.models.memory import explain_out_of_memory
from longrope.models.patch import attach
from longrope.scaling import Extension, Scaling


@dataclass(frozen=True)
class Training:
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
) -> Training | None:
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
    bound_loss(attach(model, factors))
    trained = _with_lora(model, how) if how.lora else model
    steps, cached = len(windows) // how.batch, getattr(model.config, "use_cache", None)
    arguments = _arguments(how, steps, folder, device, report_to)
    trainer = Trainer(
        model=trained,
        args=arguments,
        train_dataset=windows,  # pyright: ignore[reportArgumentType]
        data_collator=_collate,
        callbacks=[Watcher(watch)],
    )
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
    return Training(steps, len(windows) * windows.size, last, time.monotonic() - began)


def wants_liger(device: str) -> bool:
    """Whether Liger's kernels are used. They replace parts of transformers for the rest of the process."""
    return device != "cpu" and importlib.util.find_spec("liger_kernel") is not None


def _arguments(how: Finetune, steps: int, folder: Path, device: str, report_to: str) -> TrainingArguments:
    cpu = device == "cpu"
    new = "activation_checkpointing" in {field.name for field in fields(TrainingArguments)}
    name = "activation_checkpointing" if new else "gradient_checkpointing"
    options: dict[str, Any] = {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    if wants_liger(device):  # norms and MLP; the loss is bounded already
        kernels = ("rope", "cross_entropy", "fused_linear_cross_entropy")
        options |= {"use_liger_kernel": True, "liger_kernel_config": dict.fromkeys(kernels, False)}
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=how.rate,
        lr_scheduler_type=how.schedule,
        warmup_steps=round(how.warmup * steps),
        adam_beta2=0.95,
        bf16=how.dtype == "bfloat16",
        use_cpu=cpu,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=how.save_every or max(1, math.ceil(steps / 20)),
        save_total_limit=2,
        report_to=report_to,
        seed=how.seed,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        **options,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one device a process: without a launch, transformers takes them all
    sharing = _processes_of_a_sequence(how)
    groups = arguments.world_size / sharing  # 0.5 where there are fewer processes than are to share a sequence
    each, rest = divmod(how.batch, groups)
    if rest or groups % 1:
        raise LongRopeError(
            f"finetune.batch = {how.batch} does not divide by {arguments.world_size} processes, {sharing} a sequence"
        )
    arguments.gradient_accumulation_steps = int(each)
    return arguments


def _processes_of_a_sequence(how: Finetune) -> int:
    """Over how many processes accelerate spreads one sequence (context, sequence or tensor parallelism).

    Raises:
        LongRopeError: if documents, or positions that jump, would then be seen in another way than they should.
    """
    if os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() != "true":
        return 1
    spread = ParallelismConfig()
    if how.short and (spread.cp_enabled or spread.sp_enabled):
        raise LongRopeError(
            f"finetune.short = {how.short}: documents would see each other where several processes share a sequence; "
            "use short = 0, or a whole sequence on each device"
        )
    if how.window is not None and spread.sp_enabled:
        raise LongRopeError(
            f"finetune.window = {how.window}: DeepSpeed takes a jump of positions for the border of a document; "
            "leave it out, or use a whole sequence on each device"
        )
    return spread.non_data_parallel_size


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
