"""The dtype of ``--dtype auto``: the checkpoint's, or another one on a device that is slow in bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedConfig

from longrope.cost import bfloat16_speed
from longrope.errors import LongRopeError
from longrope.models.load import DTYPES, check_dtype
from longrope.storage.jsonl import read_settings


def choose_dtype(
    requested: str,
    config: PreTrainedConfig,
    device: str,
    check_memory: Callable[[str], None],
    *,
    recorded: str | None = None,
) -> tuple[str, str]:
    """Choose the dtype that a model is loaded in.

    ``auto`` becomes the checkpoint's dtype. On a CPU where bfloat16 is slow it becomes float32 instead of bfloat16, if
    float32 fits into memory; on a GPU without bfloat16 it becomes float32, or float16. A checkpoint without a dtype in
    its config keeps ``auto``.

    Args:
        requested: A key of `longrope.models.load.DTYPES`; all but ``auto`` are kept.
        config: The model's config.
        device: A torch device.
        check_memory: Function of a dtype that raises LongRopeError if the passes do not fit into memory in it.
        recorded: Dtype of the run that is resumed, which ``auto`` then means.

    Returns:
        The dtype's name, and a sentence for the user: why it is not the checkpoint's, or why it is slow; else "".

    Raises:
        LongRopeError: If the requested dtype is unknown.
    """
    check_dtype(requested)
    if requested == "auto" and recorded is not None:
        return recorded, ""
    checkpoint = str(config.dtype).removeprefix("torch.")
    dtype = requested
    if requested == "auto" and checkpoint in DTYPES:
        dtype = checkpoint
    if dtype == "bfloat16" and bfloat16_speed.lacks_bfloat16(device):
        return _without_bfloat16(requested, device, check_memory)
    if dtype != "bfloat16" or device != "cpu":
        return dtype, ""
    slowdown = bfloat16_speed.bfloat16_slowdown()
    if slowdown <= bfloat16_speed.SLOW:
        return dtype, ""
    slow = f"this CPU takes {slowdown:.1f} times as long for a product in bfloat16 as in float32"
    if requested != "auto":
        return dtype, f"dtype = bfloat16: {slow}; float32 is faster, in more memory"
    try:
        check_memory("float32")
    except LongRopeError:
        return dtype, f"dtype = auto: bfloat16, as float32 does not fit into memory; {slow}"
    return "float32", f"dtype = auto: float32, as {slow}"


def _without_bfloat16(requested: str, device: str, check_memory: Callable[[str], None]) -> tuple[str, str]:
    """Return the dtype on a GPU without bfloat16: float32 if it fits, else float16; or the requested one."""
    reason = f"{device} has no instructions for bfloat16"
    if requested != "auto":
        return requested, f"dtype = {requested}: {reason}; float32 and float16 are faster"
    try:
        check_memory("float32")
    except LongRopeError:
        return "float16", f"dtype = auto: float16, as {reason} and float32 does not fit into memory"
    return "float32", f"dtype = auto: float32, as {reason}"


def recorded_dtype(journal: Path) -> str | None:
    """Return the dtype that a journal was begun with; None if it does not exist or does not say."""
    dtype = read_settings(journal).get("dtype")
    return None if dtype is None else str(dtype).removeprefix("torch.")
