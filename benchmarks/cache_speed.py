"""Measure what copies of the key/value cache cost: transformers' cache and attention, and ours, behind one long text.

    make benchmark-cache-speed           # two minutes of one core

Both caches hold the same keys and values of a text. ``generate`` adds tokens one by one, then a pass reads a question
at once, and both are forgotten. The caches take turns. Results are tokens per processor second on one thread, medians
of some rounds after a rehearsal, in ``benchmarks/results/cache-speed.json``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from longrope.models.backbone import backbone_of
from longrope.models.cache import cache_argument
from longrope.models.generation import fill
from longrope.models.grouped_attention import grouped_attention
from longrope.models.growing_cache import growing_cache
from longrope.models.load import load
from longrope.provenance import provenance
from longrope.storage.atomic import write_json

RESULTS = Path(__file__).parent / "results" / "cache-speed.json"
SEED, LENGTHS, DTYPE = 0, {"tiny": 8192, "smollm2": 4096}, "float32"
ROUNDS, NEW, QUESTION = 7, 16, 16  # rounds, generated tokens, tokens of a question
THEIRS, OURS = "transformers", "longrope"
ATTENTION = {THEIRS: nullcontext, OURS: grouped_attention}


@torch.no_grad()
def main() -> None:
    """Measure both models, and write the results."""
    torch.set_num_threads(1)
    models = {name: measure(load(name, dtype=DTYPE)[0], length) for name, length in LENGTHS.items()}
    settings = {"dtype": DTYPE, "rounds": ROUNDS, "generated": NEW, "question": QUESTION, "seed": SEED}
    write_json(RESULTS, {**settings, "models": models, "provenance": provenance()})
    print(RESULTS.read_text())


def measure(model: Any, length: int) -> dict[str, Any]:
    """Return the length, and by task the median tokens per processor second of both caches and their quotient."""
    ids = torch.randint(model.config.vocab_size, (1, length + QUESTION), generator=torch.Generator().manual_seed(SEED))
    caches = filled_caches(model, ids[:, :length])
    row: dict[str, Any] = {"length": length}
    for task, tokens in ((generate, NEW), (question, QUESTION)):
        seconds = measure_in_turn(task, model, ids, caches)
        rates = {name: tokens / median(times) for name, times in seconds.items()}
        faster = rates[OURS] / rates[THEIRS]
        row[task.__name__] = {"tokens_per_cpu_second": rates, "times_faster": faster, "cpu_seconds": seconds}
    return row


def filled_caches(model: Any, ids: Tensor) -> dict[str, DynamicCache]:
    """Return transformers' cache and ours with the keys and values of a text."""
    caches = {THEIRS: DynamicCache(config=model.config), OURS: growing_cache(model.config)}
    list(fill(model, ids, caches[THEIRS]))
    layers: Any = zip(caches[OURS].layers, caches[THEIRS].layers, strict=True)
    for ours, theirs in layers:
        ours.update(theirs.keys, theirs.values)
    return caches


def measure_in_turn(
    task: Callable[..., object], model: Any, ids: Tensor, caches: dict[str, DynamicCache]
) -> dict[str, list[float]]:
    """Return the processor seconds of a task by cache and round; the cache then forgets what the task added."""
    seconds: dict[str, list[float]] = {name: [] for name in caches}
    for _ in range(ROUNDS + 1):
        for name, cache in caches.items():
            size = cache.get_seq_length()
            with ATTENTION[name](model.device):
                started = time.process_time()
                task(model, ids, cache)
                seconds[name].append(time.process_time() - started)
            cache.crop(size - cache.get_seq_length())
    return {name: times[1:] for name, times in seconds.items()}


def generate(model: Any, ids: Tensor, cache: DynamicCache) -> None:
    """Continue the text and the question's first token greedily, token by token."""
    prompt = ids[:, : cache.get_seq_length() + 1]
    options = {"attention_mask": torch.ones_like(prompt), "eos_token_id": None, cache_argument(model): cache}
    model.generate(prompt, max_new_tokens=NEW, do_sample=False, **options)


def question(model: Any, ids: Tensor, cache: DynamicCache) -> None:
    """Read the question in one pass."""
    backbone_of(model)(ids[:, cache.get_seq_length() :], use_cache=True, **{cache_argument(model): cache})


if __name__ == "__main__":
    main()
