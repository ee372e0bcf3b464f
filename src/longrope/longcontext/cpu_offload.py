"""Offload: activations that a GPU has no memory for wait in main memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from longrope.models.device_memory import device_memory

SHARE = 16  # activations may take 1/16 of a card's memory
SMALL = 2**20  # bytes; smaller tensors are not worth moving


def activation_budget(device: torch.device | str) -> float:
    """Return the bytes of activations that may stay on a device; infinite unless it is a CUDA device."""
    name = str(device)
    return (device_memory(name) or 0) / SHARE if name.startswith("cuda") else math.inf


@contextmanager
def offload_activations(device: torch.device | str) -> Iterator[None]:
    """Let the tensors that autograd saves in this block stay on the device up to its `activation_budget`.

    All further tensors move to main memory, and back in the backward pass. Small tensors and parameters stay.

    Args:
        device: The device of the model.
    """
    budget = activation_budget(device)
    if budget == math.inf:
        yield
        return
    saved_bytes = 0

    def pack(tensor: Tensor) -> tuple[Tensor, torch.device]:
        nonlocal saved_bytes
        origin = tensor.device
        if (
            saved_bytes + tensor.nbytes > budget
            and tensor.nbytes > SMALL
            and not isinstance(tensor, torch.nn.Parameter)
        ):
            return tensor.cpu(), origin
        saved_bytes += tensor.nbytes
        return tensor, origin

    def unpack(packed: tuple[Tensor, torch.device]) -> Tensor:
        tensor, origin = packed
        return tensor.to(origin)

    with saved_tensors_hooks(pack, unpack):
        yield
