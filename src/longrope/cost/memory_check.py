"""Does a length fit into memory? Asked before anything is loaded."""

from __future__ import annotations

import math
from bisect import bisect_right
from functools import partial

import torch
from transformers import PreTrainedConfig

from longrope.cost import peak_memory
from longrope.cost.model_shape import ModelShape
from longrope.errors import LongRopeError
from longrope.models.device_memory import free_memory
from longrope.units import short_length


def check_pass_memory(
    config: PreTrainedConfig,
    length: int,
    *,
    batch: int,
    dtype: str,
    device: str,
    gradient: bool = False,
    workers: int = 1,
    processes: int = 1,
) -> None:
    """Refuse passes that cannot fit.

    Args:
        config: of the model.
        length: in tokens.
        batch: rows of a pass.
        dtype: that the model will be loaded in, a key of `longrope.models.load.DTYPES`.
        device: where.
        gradient: whether passes go backwards too.
        workers: models on this machine, each in a process; several devices of the name ``cuda`` share them.
        processes: Processes on this machine that run one pass together; each has a CUDA device of its own.

    Raises:
        LongRopeError: if the device, or the main memory for what waits there, has less free than weights and a pass
            take; says what fits.
    """
    free = free_memory(device)
    if free is None:
        return
    anatomy, sharing = ModelShape.of(config, dtype, device), workers * processes
    if device == "cuda":
        sharing = math.ceil(workers / torch.cuda.device_count())
    free //= sharing
    formulas = peak_memory.of_pass, peak_memory.moved_in_pass
    needs, waits = (partial(one, anatomy, gradient=gradient) for one in formulas)
    main = (free_memory("cpu") or 0) // workers

    def fit(tokens: int) -> bool:
        return needs(tokens) <= free and waits(tokens) <= main

    if fit(length * batch):
        return
    tried = (*range(min(1024, length * batch)), *range(1024, length * batch, 1024))
    fits = max(filter(fit, tried), default=0)
    rows = "" if batch == 1 else f" with batch = {batch}"
    what, remedy = ("a gradient", ", a window, a method without gradients (cma)") if gradient else ("a pass", "")
    most = f"about {short_length(fits)} tokens fit in {what}" if fits else "the weights alone do not fit"
    who = "processes" if processes > 1 else "workers"
    each, fewer = (f" for each of {sharing} {who}", f", fewer {who}") if sharing > 1 else ("", "")
    beside = waits(length * batch)
    there = f", and {beside / 2**30:.1f} GiB of main memory, which has {main / 2**30:.1f}" if beside else ""
    raise LongRopeError(
        f"length = {length}{rows} takes about {needs(length * batch) / 2**30:.1f} GiB with the weights where {device} "
        f"has {free / 2**30:.1f} GiB free{each}{there}; {most}: lower the length or the "
        f"batch, use dtype bfloat16{fewer}{remedy}, or another device"
    )


def check_cache_memory(config: PreTrainedConfig, length: int, *, held: int, dtype: str, device: str) -> None:
    """Refuse to generate where keys and values alone cannot fit.

    Args:
        config: of the model, which is loaded.
        length: of the prompt and what is generated, in tokens.
        held: tokens whose keys and values are in memory.
        dtype: of the model.
        device: where.

    Raises:
        LongRopeError: if the device has less free memory than the cache takes; says what fits.
    """
    free, takes = free_memory(device), partial(peak_memory.of_cache, ModelShape.of(config, dtype))
    if free is None or takes(length) - takes(held) <= free:
        return
    fits = bisect_right(range(length), free + takes(held), key=takes) - 1
    most = f"about {short_length(fits)} fit" if fits else "not one fits"
    raise LongRopeError(
        f"{length} tokens of prompt and answer need {takes(length) / 2**30:.1f} GiB of keys and values where {device} "
        f"has {(free + takes(held)) / 2**30:.1f} GiB for them; {most}: give a shorter text, "
        "use --dtype bfloat16, or another device"
    )
