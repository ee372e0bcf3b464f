"""What fine-tuning needs: of the model, and of packages, programs and devices on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Container, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.integration_utils import get_available_reporting_integrations

from longrope.cost.model_shape import ModelShape
from longrope.errors import LongRopeError
from longrope.longcontext.sparse_attention import check_sparse_windows
from longrope.models.load import load_config
from longrope.models.quantized import QuantizedBits, bits_of_weights, gradient_barrier, method_of
from longrope.stages.plan import Plan
from longrope.stages.plan_tables import Distill, Finetune

CHECKPOINT_COPIES = 3  # of the trained weights, in a checkpoint of a training: with both moments of AdamW
CHECKPOINTS = 2  # that a training keeps; it writes another one before it removes the oldest


def check_model_fits(plan: Plan, config: PreTrainedConfig, device: str) -> None:
    """Refuse, before hours of work, a plan whose fine-tuning the model does not fit.

    Args:
        plan: The plan.
        config: Config of the model.
        device: A torch device.

    Raises:
        LongRopeError: If its attention takes no weights of keys, its weights are quantised and are to be trained, or a
            teacher has another vocabulary or other layers.
    """
    quantized = bits_of_weights(config, device) != QuantizedBits()
    for i, stage in enumerate(plan.stages):
        if stage.finetune is None:
            continue
        if stage.finetune.windows == "sparse":
            check_sparse_windows(config)
        if quantized:
            _check_quantized(f"stages[{i}].finetune", stage.finetune, method_of(config))
        if stage.finetune.distill is not None:
            _check_teacher(f"stages[{i}].finetune.distill", stage.finetune.distill, config)


def _check_teacher(name: str, distill: Distill, config: PreTrainedConfig) -> None:
    """Refuse a teacher with another vocabulary, or with other layers if its hidden states are to be kept."""
    if distill.teacher is None:
        return
    teacher = load_config(distill.teacher).get_text_config()
    remedies = {"vocab_size": "Take a teacher with the same tokenizer."}
    if distill.hidden:
        remedies |= dict.fromkeys(("num_hidden_layers", "hidden_size"), "Take another teacher, or leave hidden out.")
    for field, remedy in remedies.items():
        sizes = [getattr(settings, field) for settings in (teacher, config.get_text_config())]
        if sizes[0] != sizes[1]:
            raise LongRopeError(
                f"{name}.teacher = {distill.teacher!r}: its {field} is {sizes[0]}, the model's {sizes[1]}. {remedy}"
            )


def check_loaded_weights(model: PreTrainedModel, finetune: Finetune, name: str) -> None:
    """Refuse weights that are quantised on the device, and cannot be trained as a fine-tuning says.

    Args:
        model: The model, loaded for the fine-tuning.
        finetune: Settings of the fine-tuning.
        name: Name of its table in the plan, for the message.

    Raises:
        LongRopeError: If they cannot.
    """
    if not getattr(model, "is_quantized", False):
        return
    method, quantizer = method_of(model.config), getattr(model, "hf_quantizer", None)
    _check_quantized(name, finetune, method)
    if not getattr(quantizer, "is_trainable", False):
        raise LongRopeError(
            f"{name}: transformers trains no adapter beside {method} weights. Train the model that they were made from."
        )
    tested = finetune.rate == "auto" or finetune.windows == "sparse"
    barrier = gradient_barrier(model) if tested else None
    if barrier is not None:
        raise LongRopeError(
            f"{name}: {barrier} after a pass without gradients, which the checks of sparse windows and of rates make. "
            "Train on a GPU, or leave windows out and give the rate as a number, such as 1e-3."
        )


def _check_quantized(name: str, finetune: Finetune, method: Any) -> None:
    """Refuse to train quantised weights, to merge an adapter into them, or to make a teacher of them."""
    if not finetune.lora or finetune.merge:
        raise LongRopeError(
            f"{name}: the {method} weights are quantised, and only an adapter beside them can be trained. "
            "Give lora = 8 and merge = false, or train the model that they were made from."
        )
    if finetune.distill is not None and finetune.distill.has_teacher and finetune.distill.teacher is None:
        raise LongRopeError(
            f"{name}.distill: the {method} weights are quantised, and cannot be copied as a teacher. "
            "Name a teacher that is not, or leave distill out."
        )


def check_requirements(
    plan: Plan,
    *,
    device: str,
    launch: Sequence[str],
    report_to: str,
    trained: Container[int] = (),
    rated: Container[int] = (),
) -> None:
    """Check, before hours of work, that the fine-tuning of a plan will find everything that it needs.

    Args:
        plan: The plan.
        device: A torch device.
        launch: Command that starts several processes; empty for this process.
        report_to: Service that fine-tuning reports to, as transformers' Trainer names it.
        trained: Numbers of the stages, from 1, that are fine-tuned already.
        rated: Numbers of the stages whose learning rate was chosen already.

    Raises:
        LongRopeError: If a package, a program or a device is missing.
    """
    stages = [
        (i, stage.finetune)
        for i, stage in enumerate(plan.stages)
        if stage.finetune is not None and i + 1 not in trained
    ]
    for i, finetune in stages:
        if finetune.lora and find_spec("peft") is None:
            raise LongRopeError(
                f'stages[{i}].finetune.lora = {finetune.lora} needs the package peft: pip install "longrope[lora]"'
            )
        if finetune.rate == "auto" and launch and i + 1 not in rated:
            raise LongRopeError(
                f'stages[{i}].finetune.rate = "auto": the test of rates runs in one process, not with launch. '
                "Give the rate as a number, such as 2e-5."
            )
    if stages:
        check_training(device=device, launch=launch, report_to=report_to)


def check_training(*, device: str, launch: Sequence[str], report_to: str) -> None:
    """Check what every fine-tuning needs; arguments and errors as for `check_requirements`."""
    if launch and shutil.which(launch[0]) is None:
        raise LongRopeError(f"launch = {launch[0]!r}: there is no such program")
    if ":" in device:
        raise LongRopeError(
            f"device = {device!r}: fine-tuning takes the first device that it sees. "
            "Use device cuda, and choose the card with the variable CUDA_VISIBLE_DEVICES."
        )
    known = (*get_available_reporting_integrations(), "none", "all")
    if report_to not in known:
        raise LongRopeError(
            f"report_to = {report_to!r}: the service is unknown or not installed. Choose one of {', '.join(known)}."
        )


def check_disk(plan: Plan, shape: ModelShape, folder: Path, *, dtype: torch.dtype | str | None = None) -> None:
    """Refuse, before hours of work, a run whose weights do not fit on the disk.

    Args:
        plan: The plan.
        shape: Sizes of the model.
        folder: Folder of the run, or a folder that will be in an existing one.
        dtype: Dtype of the checkpoint, in which a stage's weights and the export are written; float32 if None.

    Raises:
        LongRopeError: If the disk has too little room.
    """
    size = dtype.itemsize if isinstance(dtype, torch.dtype) else 4
    finished = most = 0  # bytes: of the weights of finished stages, and of the largest moment
    for finetune in (stage.finetune for stage in plan.stages if stage.finetune is not None):
        checkpoint = 4 * CHECKPOINT_COPIES * shape.trained(finetune.lora)
        left = shape.parameters if finetune.merge else shape.trained(finetune.lora)
        # the training's last checkpoint, or the trained weights in float32 and those of the stage, beside older ones
        most = max(most, finished + CHECKPOINTS * checkpoint + max(checkpoint, (4 + size) * left))
        finished += size * left
    exported = 0 if plan.export == "none" else size * shape.parameters
    needed = max(most, finished + exported)
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise LongRopeError(
            f"output = {str(folder)!r}: the run writes up to {needed / 2**30:.1f} GiB where {free / 2**30:.1f} GiB are "
            "free. Make room, or choose a folder on another disk."
        )
