"""What one pass of ``tiny`` over some tokens holds beside the model, in bytes: a process of its own that prints it.

Peaks of the resident memory tell tensors only where the allocator gives freed memory back at once:
MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ must be small.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import numpy as np
import torch

from longrope.cost import peak_memory
from longrope.cost.model_shape import ModelShape
from longrope.data.weighted_text import perplexity_texts
from longrope.longcontext.tiling import tile_mlps
from longrope.longcontext.training_loss import use_chunked_loss
from longrope.models.load import load
from longrope.objectives.model_loss import ModelObjective
from longrope.rope import Rope
from longrope.schemes import scheme


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def main(mode: str, dtype: str, length: str) -> None:
    torch.set_num_threads(1)
    model, _ = load("tiny", dtype="float32" if mode == "train" else dtype)
    if mode == "train":
        model.train()
        peak_memory.ROOM = 0.0  # to take what a training needs, and no more
        if peak_memory.recomputes_layers(ModelShape.of(model.config), int(length), lora=0, mixed=dtype == "bfloat16"):
            model.activation_checkpointing_enable({"use_reentrant": False})
        optimizer = torch.optim.AdamW(tile_mlps(use_chunked_loss(model)).parameters())

    def step(length: int) -> None:
        tokens = np.random.default_rng(0).integers(0, 2000, (1, length))
        if mode == "train":
            ids = torch.from_numpy(tokens)
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
        else:
            scaling = scheme("yarn", Rope.of(model), length)
            list(
                ModelObjective(model, perplexity_texts(tokens)).evaluate([[(scaling, 0)]], gradient=mode == "gradient")
            )

    step(256)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    step(int(length))
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
