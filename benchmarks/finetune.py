"""A fine-tuning step against a plain ``Trainer`` on the same model and tokens: peak memory and speed.

    make benchmark-finetune        # half an hour on two cores; continues where it stopped

Every measurement is a process that takes a few steps of one sequence with AdamW in float32. ``plain`` is transformers'
Trainer on the plain model, ``checkpointed`` the same with activation checkpointing, ``ours`` the training of ``longrope
extend``, and ``sparse`` a sparse window of 2,048 tokens that reaches the length. Time is that of the processor, which
other work on the machine hardly changes. Memory is the peak above the loaded model. Results in
``benchmarks/results/finetune.json``.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from measuring import measure_in_processes, medians, reset_peak, status
from transformers import Trainer, TrainerCallback, TrainingArguments

import longrope as lr
from longrope.cost.model_shape import ModelShape
from longrope.cost.peak_memory import recomputes_layers
from longrope.data.training_windows import TrainingWindows
from longrope.longcontext.sparse_attention import use_weighted_attention
from longrope.longcontext.training_loss import use_chunked_loss
from longrope.models.patch import install_factors

RESULTS = Path(__file__).parent / "results" / "finetune.json"
WAYS, WINDOW = ("plain", "checkpointed", "ours", "sparse"), 2048
TURNS = {"tiny 2048": 4, "tiny 8192": 1, "tiny 32768": 1, "smollm2 1024": 2}
STEPS = 4  # the first one is not counted, but where it is the only one
LONG = 2**14  # tokens of a sequence, above which one step is taken, and plain ones are left out


class Clock(TrainerCallback):
    """A callback that notes when each step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = [time.process_time()]

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the processor time."""
        self.ends.append(time.process_time())


def measure(name: str, words: str, way: str) -> dict[str, float]:
    """Return the peak bytes above the loaded model and the tokens per second of a way; none where it has no case."""
    length, steps = int(words), 1 if int(words) > LONG else STEPS
    if (length > LONG and way in WAYS[:2]) or (length < WINDOW and way == "sparse"):
        return {}
    model, _ = lr.load(name, dtype="float32")
    rope = lr.Rope.of(model)
    install_factors(model, lr.scheme("ramp", rope, max(length, 2 * rope.original_length)))
    documents = [np.random.default_rng(0).integers(1, 2000, max(steps, 2) * length + WINDOW * steps)]
    sparse = {"window": WINDOW, "sparse": True} if way == "sparse" else {}
    windows = TrainingWindows(documents, length=length, count=steps, original_length=rope.original_length, **sparse)
    checkpointing = way == "checkpointed"
    if way in ("ours", "sparse"):
        if way == "sparse":
            use_weighted_attention(model)
        use_chunked_loss(model)
        checkpointing = recomputes_layers(ModelShape.of(model.config, "float32"), windows.size, lora=0, mixed=False)
    clock = Clock()
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=1,
            use_cpu=True,
            activation_checkpointing=checkpointing,
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
        before = reset_peak()
        clock.ends = [time.process_time()]
        trainer.train()
    seconds = float(median(np.diff(clock.ends)[-max(1, steps - 1) :]))
    return {
        "peak_bytes": status("VmHWM") - before,
        "seconds_per_step": seconds,
        "tokens_per_second": windows.size / seconds,
    }


def summarize(measurements: dict[str, Any]) -> dict[str, Any]:
    """Return the medians of each case and way, and the seconds of a plain or whole step over those of ours."""
    rows = {f"{case} {way}": medians(measurements, f"{case} {way}") for case in TURNS for way in WAYS}
    rows = {name: row for name, row in rows.items() if row}
    ratios = {}
    for case in TURNS:
        for way, other in (("ours", "plain"), ("sparse", "plain"), ("sparse", "ours")):
            if f"{case} {way}" in rows and f"{case} {other}" in rows:
                ratio = rows[f"{case} {other}"]["seconds_per_step"] / rows[f"{case} {way}"]["seconds_per_step"]
                ratios[f"{case}: {other} / {way}"] = ratio
    return {"medians": rows, "seconds_ratios": ratios}


if __name__ == "__main__":
    measure_in_processes(RESULTS, TURNS, WAYS, measure, summarize)
