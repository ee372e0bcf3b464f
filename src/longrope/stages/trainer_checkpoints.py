"""Checkpoints of a fine-tuning: which are whole, and what stops it before one is spoilt."""

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
TORCH_SAVE = ("inline_container", "PytorchStreamWriter", "iostream error")  # what its errors of writing say
COMPLETE = "complete"  # a file that a checkpoint gets when all else in it is written


def last_whole(folder: Path, *, remove: bool) -> str | None:
    """The last checkpoint that was written to its end; those that a crash cut are removed, by one process."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    whole = [path for path in found if (path / COMPLETE).exists()]
    for path in found if remove else ():
        if path not in whole:
            shutil.rmtree(path)
    return str(whole[-1]) if whole else None


@contextmanager
def writing(folder: Path) -> Iterator[None]:
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


def _not_finite(what: str, step: int, folder: str) -> LongRopeError:
    return LongRopeError(
        f"finetune: the {what} of step {step} is no finite number; the last whole checkpoint is kept in {folder}; "
        "begin another run with this one's factors (stages.factors takes a file) and a lower finetune.rate, or "
        'dtype = "float32"'
    )


class Watcher(TrainerCallback):
    """Stops before a step that would spoil the weights, marks whole checkpoints, tells the progress."""

    def __init__(self, watch: Callable[[int, float], None] | None) -> None:
        self.watch = watch

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Refuse a gradient that is not finite: clipping has spread it to all weights by now."""
        gradients = [parameter.grad for parameter in given["model"].parameters() if parameter.grad is not None]
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            raise _not_finite("gradient", state.global_step + 1, args.output_dir)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
        """Tell step and loss; refuse one that is not finite where the gradients were not at hand (DeepSpeed)."""
        if "loss" not in (logs or {}):
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise _not_finite("loss", state.global_step, args.output_dir)
        if self.watch is not None and state.is_world_process_zero:
            self.watch(state.global_step, loss)

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Mark the checkpoint, in which all processes have written everything by then."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()
