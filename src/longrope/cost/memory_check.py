"""Checks that a length fits into memory, made before anything is loaded."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from transformers import PreTrainedConfig

from longrope.cost import peak_memory
from longrope.cost.model_shape import ModelShape
from longrope.errors import LongRopeError
from longrope.models.device_memory import free_memory
from longrope.models.growing_cache import LEAST_ROOM
from longrope.units import short_length

PassKind = Literal["forward", "gradient", "generation"]
NAMES: dict[PassKind, str] = {"forward": "a pass", "gradient": "a gradient", "generation": "a pass with its cache"}


@dataclass(frozen=True)
class Placement:
    """The dtype and the devices that a model's passes run in.

    Args:
        dtype: Dtype that the model will be loaded in, a key of `longrope.models.load.DTYPES`.
        device: A torch device.
        workers: Copies of the model on this machine, each in a process; several devices of the name ``cuda`` share
            them.
        processes: Processes on this machine that run one pass together; each has a CUDA device of its own.
    """

    dtype: str
    device: str
    workers: int = 1
    processes: int = 1

    @property
    def sharing(self) -> int:
        """Number of models and processes that share the memory of one device."""
        if self.device == "cuda":
            return math.ceil(self.workers / torch.cuda.device_count())
        return self.workers * self.processes


def check_pass_memory(
    config: PreTrainedConfig, length: int, placement: Placement, *, batch: int = 1, kind: PassKind = "forward"
) -> None:
    """Refuse passes that cannot fit.

    Args:
        config: The model's config.
        length: Tokens of a sequence.
        placement: Dtype and devices.
        batch: Sequences in one pass.
        kind: ``forward``, ``gradient`` (with the backward pass) or ``generation`` (with keys and values kept).

    Raises:
        LongRopeError: If weights and a pass take more than the device has free, or more main memory than is free for
            what a GPU leaves there. The error names the longest length that fits.
    """
    device_memory = free_memory(placement.device)
    if device_memory is None:
        return
    free = device_memory // placement.sharing
    main_free = (free_memory("cpu") or 0) // placement.workers
    shape, gradient = ModelShape.of(config, placement.dtype, placement.device), kind == "gradient"
    offloaded = partial(peak_memory.moved_in_pass, shape, gradient=gradient)

    def needed(tokens: int) -> int:
        cache = _growing_cache(shape, tokens) if kind == "generation" else 0
        return peak_memory.of_pass(shape, tokens, gradient=gradient) + cache

    def fit(tokens: int) -> bool:
        return needed(tokens) <= free and offloaded(tokens) <= main_free

    tokens = length * batch
    if fit(tokens):
        return
    rows = "" if batch == 1 else f" with batch = {batch}"
    each = f" for each of {placement.sharing} {_sharers(placement)}" if placement.sharing > 1 else ""
    main = offloaded(tokens)
    main_memory = f", and {_gib(main)} GiB of main memory, which has {_gib(main_free)}" if main else ""
    raise LongRopeError(
        f"length = {length}{rows} takes about {_gib(needed(tokens))} GiB with the weights where {placement.device} "
        f"has {_gib(free)} GiB free{each}{main_memory}; {_longest(fit, tokens, kind)}: {_remedies(placement, kind)}"
    )


def check_cache_memory(config: PreTrainedConfig, length: int, *, cached: int, dtype: str, device: str) -> None:
    """Refuse to generate where keys and values alone, with the room of a growing cache, cannot fit.

    Args:
        config: The config of the model, which is loaded.
        length: Tokens of the prompt and of the answer.
        cached: Tokens whose keys and values are in memory.
        dtype: The model's dtype.
        device: A torch device.

    Raises:
        LongRopeError: If the device has less free memory than the cache takes; names the length that fits.
    """
    shape, free = ModelShape.of(config, dtype), free_memory(device)
    needed, cached_bytes = partial(_growing_cache, shape), peak_memory.of_cache(shape, cached)
    if free is None or needed(length) - cached_bytes <= free:
        return
    fits = max(0, bisect_right(range(length), free + cached_bytes, key=needed) - 1)
    longest = f"about {short_length(fits)} fit" if fits else "not one fits"
    raise LongRopeError(
        f"{length} tokens of prompt and answer need {_gib(needed(length))} GiB of keys and values where {device} "
        f"has {_gib(free + cached_bytes)} GiB for them; {longest}: give a shorter text, "
        "use dtype bfloat16, or another device"
    )


def _growing_cache(shape: ModelShape, tokens: int) -> int:
    """Return the most bytes of a `longrope.models.growing_cache` of some tokens."""
    return peak_memory.of_cache(shape, tokens + max(tokens // 16, LEAST_ROOM))


def _longest(fit: Callable[[int], bool], tokens: int, kind: PassKind) -> str:
    """Return a clause that names the most tokens that fit, to 1,024 of them."""
    blocks = bisect_left(range(1, tokens // 1024 + 1), True, key=lambda count: not fit(1024 * count))
    longest = 1024 * blocks or bisect_left(range(1, 1024), True, key=lambda length: not fit(length))
    return f"about {short_length(longest)} tokens fit in {NAMES[kind]}" if longest else "the weights alone do not fit"


def _remedies(placement: Placement, kind: PassKind) -> str:
    fewer = f", fewer {_sharers(placement)}" if placement.sharing > 1 else ""
    search = ", a window, a method without gradients (cma)" if kind == "gradient" else ""
    return f"lower the length or the batch, use dtype bfloat16{fewer}{search}, or another device"


def _sharers(placement: Placement) -> str:
    return "processes" if placement.processes > 1 else "workers"


def _gib(bytes_: int) -> str:
    return f"{bytes_ / 2**30:.1f}"
