"""Processes of one launch (torchrun, accelerate launch) that run one command together."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from longrope.cli import options
from longrope.errors import LongRopeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")
# control characters, which a file or its name may hold and a terminal would obey
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def count() -> int:
    """Return the number of processes."""
    return _number("WORLD_SIZE", 1) if "MASTER_ADDR" in os.environ else 1


def here() -> int:
    """Return the number of processes on this machine."""
    return _number("LOCAL_WORLD_SIZE", count()) if count() > 1 else 1


def first() -> bool:
    """Return whether this process prints and writes for all."""
    if count() == 1:
        return True
    from longrope.stages.launch import is_first_process

    return is_first_process()


def refuse(instead: str) -> None:
    """Refuse to run in several processes.

    Args:
        instead: The option that starts others.

    Raises:
        LongRopeError: If this process is one of several.
    """
    if count() > 1:
        raise LongRopeError(
            f"WORLD_SIZE = {count()}: this command runs in one process, and starts others with {instead}; "
            "start it without torchrun, or unset WORLD_SIZE"
        )


def provenance() -> dict[str, int]:
    """Return the number of processes for a result's provenance; nothing for a single process."""
    return {"processes": count()} if count() > 1 else {}


def say(text: str) -> None:
    """Print a line on standard error, in the first process only."""
    if first():
        typer.echo(CONTROLS.sub("?", text), err=True)


def take_device(device: str) -> None:
    """Give each of several processes a CUDA device of its own, which ``cuda`` means from then on.

    Raises:
        LongRopeError: If the device's name is a single card, or there are fewer devices than processes.
    """
    if count() == 1 or not device.startswith("cuda"):
        return
    import torch

    if device != "cuda":
        raise LongRopeError(f"device = {device!r} for {here()} processes: each needs its own; use --device cuda")
    if here() > torch.cuda.device_count():
        raise LongRopeError(
            f"{here()} processes for {torch.cuda.device_count()} CUDA devices: each needs its own; start fewer"
        )
    torch.cuda.set_device(_number("LOCAL_RANK", 0))


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Connect the processes to each other in the block.

    Args:
        device: Device that they will compute on.
    """
    if count() == 1:
        yield
        return
    import torch.distributed as dist

    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    yield
    dist.destroy_process_group()  # not after an error, when others may be waiting for this one


def same(value: T) -> T:
    """Return the first process's value in all processes."""
    if count() == 1:
        return value
    import torch
    import torch.distributed as dist

    values = [value]
    dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def agree(inputs: Mapping[str, Any]) -> None:
    """Refuse to continue if this process has read other inputs than the first one.

    Raises:
        LongRopeError: If an input differs; names it.
    """
    expected = same(inputs)
    different = [name for name in inputs if inputs[name] != expected.get(name)]
    if different:
        raise LongRopeError(
            f"process {_number('RANK', 0)} of {count()} has other {', '.join(different)} than the first one; "
            "put model, factors and data where all see the same"
        )


def open_model(
    name: str, dtype: str, device: str, original_length: int | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model as `options.open_model` does; several processes run it together."""
    from longrope.longcontext.context_parallel import context_parallel

    model, tokenizer = options.open_model(name, dtype, device, original_length)
    return context_parallel(model) if count() > 1 else model, tokenizer


def _number(name: str, default: int) -> int:
    return int(os.environ.get(name, default))
