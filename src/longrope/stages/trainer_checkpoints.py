"""Checkpoints of a fine-tuning: which are complete, and the guard that stops it before one is spoilt."""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import TrainerCallback

from longrope.errors import LongRopeError

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR)
TORCH_SAVE = ("inline_container", "PytorchStreamWriter", "iostream error")  # in its messages when it cannot write
COMPLETE = "complete"  # the last file that is written into a checkpoint


def last_complete_checkpoint(folder: Path, *, remove_others: bool) -> str | None:
    """Return the last complete checkpoint; one process also removes those that a crash cut short."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    complete = [path for path in checkpoints if (path / COMPLETE).exists()]
    for path in checkpoints if remove_others else ():
        if path not in complete:
            shutil.rmtree(path)
    return str(complete[-1]) if complete else None


@contextmanager
def explain_disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full or broken disk inside the block into a LongRopeError."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in TORCH_SAVE):
            raise
        if isinstance(error, OSError) and error.errno not in DISK:  # such as a connection's
            raise
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise LongRopeError(f"cannot write {folder}: {reason}; make room, then --resume") from error


def _not_finite(quantity: str, step: int, folder: str) -> LongRopeError:
    return LongRopeError(
        f"finetune: the {quantity} of step {step} is not finite; the last complete checkpoint is kept in {folder}. "
        "Begin another run with this one's factors (stages.factors takes a file) and a lower finetune.rate, or "
        'dtype = "float32".'
    )


class TrainingGuard(TrainerCallback):
    """A callback that stops before a step would spoil the weights, marks complete checkpoints and reports progress."""

    def __init__(self, on_progress: Callable[[int, float], None] | None) -> None:
        self.on_progress = on_progress

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **inputs: Any) -> None:
        """Refuse a gradient that is not finite, which clipping has spread to all weights."""
        gradients = [parameter.grad for parameter in inputs["model"].parameters() if parameter.grad is not None]
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            raise _not_finite("gradient", state.global_step + 1, args.output_dir)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **inputs: Any) -> None:
        """Report step and loss; refuse a loss that is not finite, as gradients are out of reach under DeepSpeed."""
        if "loss" not in (logs or {}):
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise _not_finite("loss", state.global_step, args.output_dir)
        if self.on_progress is not None and state.is_world_process_zero:
            self.on_progress(state.global_step, loss)

    def on_save(self, args: Any, state: Any, control: Any, **inputs: Any) -> None:
        """Mark the checkpoint as complete, after all processes have written their files."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()
