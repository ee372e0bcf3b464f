"""What waits long in a GPU's memory goes to main memory where it would take too much of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from longrope.models.device_memory import device_memory

SHARE = 16  # the part of a card's memory that may hold it: 1/16
SMALL = 2**20  # bytes; what has fewer is not worth moving


def room_for_kept(device: torch.device | str) -> float:
    """Bytes that a device may keep; any number unless it is a CUDA device."""
    name = str(device)
    return (device_memory(name) or 0) / SHARE if name.startswith("cuda") else math.inf


@contextmanager
def offload_activations(device: torch.device | str) -> Iterator[None]:
    """In the block, what autograd saves stays on the device as far as there is `room_for_kept`; the rest moves.

    It comes back when the backward pass wants it. Small tensors and parameters stay.

    Args:
        device: a torch device.
    """
    room, kept = room_for_kept(device), 0
    if room == math.inf:
        yield
        return

    def pack(tensor: Tensor) -> tuple[Tensor, torch.device]:
        nonlocal kept
        home = tensor.device
        if kept + tensor.nbytes > room and tensor.nbytes > SMALL and not isinstance(tensor, torch.nn.Parameter):
            return tensor.cpu(), home
        kept += tensor.nbytes
        return tensor, home

    def unpack(packed: tuple[Tensor, torch.device]) -> Tensor:
        return packed[0].to(packed[1])

    with saved_tensors_hooks(pack, unpack):
        yield
