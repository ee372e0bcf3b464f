"""Checks that a model is loaded and can run by itself."""

from __future__ import annotations

from typing import Any

from torch.nn import DataParallel, Module
from torch.nn.parallel import DistributedDataParallel

from longrope.errors import LongRopeError


def check_loaded(model: Any) -> None:
    """Raise unless a model is loaded and not wrapped for several devices.

    Raises:
        LongRopeError: It is something else, such as a name or the pair that `longrope.load` returns.
    """
    if not isinstance(model, Module):
        raise LongRopeError(
            f"model = a {type(model).__name__}: not a loaded model. Give the first value of longrope.load(NAME)."
        )
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        raise LongRopeError(f"model = a {type(model).__name__}: a wrapper of torch around the model. Give its module.")


def check_runnable(model: Any) -> None:
    """Raise unless a model is loaded, not wrapped for several devices, and has weights with values.

    Raises:
        LongRopeError: The model cannot run by itself.
    """
    check_loaded(model)
    if str(getattr(model, "device", "")) == "meta":
        raise LongRopeError(
            "model: its weights are on the meta device, where they have no values. Load them to a device, as "
            "longrope.load does."
        )
