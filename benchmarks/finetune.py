"""A fine-tuning step against a plain ``Trainer`` on the same model and tokens: peak memory and speed.

    make benchmark-finetune        # a quarter of an hour on two cores

Every measurement is a process that takes three steps of one sequence: bf16 autocast, AdamW, float32 weights.
``plain`` is transformers' Trainer on the plain model, ``checkpointed`` the same with activation checkpointing,
``ours`` the training of ``longrope extend``. Memory is the peak above the loaded model; the longest length for 16 GB is
extrapolated along a straight line from the two lengths that were measured. Results in
``benchmarks/results/finetune.json``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from measuring import status
from transformers import Trainer, TrainerCallback, TrainingArguments

from longrope.data.training_windows import TrainingWindows
from longrope.longcontext.training_loss import use_chunked_loss
from longrope.models.load import load
from longrope.models.patch import install_factors
from longrope.provenance import provenance
from longrope.rope import Rope
from longrope.schemes import scheme
from longrope.storage.atomic import write_json

RESULTS = Path(__file__).parent / "results" / "finetune.json"
WAYS = ("plain", "checkpointed", "ours")
LENGTHS = {"tiny": (4096, 8192), "smollm2": (512, 1024)}
STEPS, BUDGET = 3, 16 * 2**30


def main() -> None:
    """Measure every way at every length, each in a process of its own."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
        return
    cells: dict[str, Any] = {}
    for model, lengths in LENGTHS.items():
        for length in lengths:
            for way in WAYS:
                command = [sys.executable, __file__, model, way, str(length)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                cells[f"{model} {length} {way}"] = json.loads(done.stdout.splitlines()[-1])
                print(model, length, way, cells[f"{model} {length} {way}"])
    for model, (short, long) in LENGTHS.items():
        for way in WAYS:
            low, high = (cells[f"{model} {length} {way}"]["peak_bytes"] for length in (short, long))
            weights = cells[f"{model} {long} {way}"]["loaded_bytes"]
            slope = (high - low) / (long - short)
            cells[f"{model} {way} longest in 16 GB"] = int(long + (BUDGET - weights - high) / slope)
    write_json(RESULTS, {"cells": cells, "steps": STEPS, "provenance": provenance()})


class Clock(TrainerCallback):
    """A callback that notes when each step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = [time.perf_counter()]

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def measure(name: str, way: str, length: int) -> dict[str, float]:
    """Return the peak bytes above the loaded model, and tokens a second, of one way of training."""
    model, _ = load(name, dtype="float32")
    install_factors(model, scheme("yarn", Rope.of(model), max(length, 2 * Rope.of(model).original_length)))
    tokens = np.random.default_rng(0).integers(1, 2000, (STEPS + 1) * length)
    windows = TrainingWindows([tokens], length=length, count=STEPS, original_length=256)
    if way == "ours":
        use_chunked_loss(model)
    clock = Clock()
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=1,
            bf16=True,
            use_cpu=True,
            activation_checkpointing=way != "plain",
            activation_checkpointing_kwargs={"use_reentrant": False},
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            disable_tqdm=True,
            label_names=["labels"],
        )

        def collate(batch: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
            return {key: torch.from_numpy(value) for key, value in batch[0].items()}

        trainer = Trainer(model, arguments, collate, train_dataset=windows, callbacks=[clock])  # pyright: ignore
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of loading
        before = status("VmRSS")
        trainer.train()
    seconds = median(np.diff(clock.ends)[1:])
    return {
        "peak_bytes": status("VmHWM") - before,
        "loaded_bytes": before,
        "seconds_a_step": float(seconds),
        "tokens_a_second": length / float(seconds),
        "loss": float(next(row["train_loss"] for row in trainer.state.log_history if "train_loss" in row)),
    }


if __name__ == "__main__":
    main()
