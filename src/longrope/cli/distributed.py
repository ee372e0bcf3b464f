"""Processes of one launch (torchrun, accelerate launch) that run one command together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from longrope.cli import options
from longrope.errors import LongRopeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")


def count() -> int:
    """How many there are."""
    return _number("WORLD_SIZE", 1) if "MASTER_ADDR" in os.environ else 1


def here() -> int:
    """How many of them are on this machine."""
    return _number("LOCAL_WORLD_SIZE", count()) if count() > 1 else 1


def first() -> bool:
    """Whether this one speaks and writes for all."""
    if count() == 1:
        return True
    from longrope.stages.launch import first_process

    return first_process()


def refuse(instead: str) -> None:
    """Refuse to run in several processes.

    Args:
        instead: the option that starts others.

    Raises:
        LongRopeError: if this is one of several.
    """
    if count() > 1:
        raise LongRopeError(
            f"WORLD_SIZE = {count()}: this command runs in one process, and starts others with {instead}; "
            "start it without torchrun, or unset WORLD_SIZE"
        )


def told() -> dict[str, int]:
    """What provenance says of them."""
    return {"processes": count()} if count() > 1 else {}


def say(text: str) -> None:
    """Tell the user something, once for all."""
    if first():
        typer.echo(text, err=True)


def take_device(device: str) -> None:
    """Give each of several processes a CUDA device of its own, which ``cuda`` means from then on.

    Raises:
        LongRopeError: if the device is one for all, or there are fewer than processes.
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
    """In the block, the processes can talk to each other.

    Args:
        device: on which they will compute.
    """
    if count() == 1:
        yield
        return
    import torch.distributed as dist

    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    yield
    dist.destroy_process_group()  # not after an error, when others may be waiting for this one


def same(value: T) -> T:
    """What the first process has, in all of them."""
    if count() == 1:
        return value
    import torch
    import torch.distributed as dist

    held = [value]
    dist.broadcast_object_list(held, device=torch.device("cpu"))
    return held[0]


def agree(read: Mapping[str, Any]) -> None:
    """Refuse to go on where this process has read something else than the first one.

    Raises:
        LongRopeError: names what.
    """
    theirs = same(read)
    unlike = [name for name in read if read[name] != theirs.get(name)]
    if unlike:
        raise LongRopeError(
            f"process {_number('RANK', 0)} of {count()} has other {', '.join(unlike)} than the first one; "
            "put model, factors and data where all see the same"
        )


def open_model(name: str, dtype: str, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """As `options.open_model`; of several processes, all run the model together."""
    from longrope.longcontext.context_parallel import context_parallel

    model, tokenizer = options.open_model(name, dtype, device)
    return context_parallel(model) if count() > 1 else model, tokenizer


def _number(name: str, default: int) -> int:
    return int(os.environ.get(name, default))
