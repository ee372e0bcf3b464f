"""Where candidates are evaluated: on a model in this process, on local processes, or on Ray."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longrope.data.weighted_text import WeightedText
from longrope.errors import LongRopeError
from longrope.models.backbone import vocabulary_of
from longrope.models.load import DTYPES, check_dtype, choose_device, load, load_config, load_tokenizer
from longrope.models.quantized import gradient_barrier
from longrope.objectives.local_workers import LocalPool, PooledObjective, WorkerPool
from longrope.objectives.model_loss import ModelObjective
from longrope.objectives.ray_workers import RayPool
from longrope.rope import Rope
from longrope.search.protocol import Objective


@dataclass(frozen=True)
class EvaluationBackend:
    """A model in this process or on workers.

    Args:
        rope: Geometry of the model.
        tokenizer: Tokenizer of the model.
        dtype: Name of the model's torch dtype.
        vocabulary: Number of rows of the model's embedding.
        make_objective: Function that makes the objective of samples on the model.
        gradient_barrier: Why no gradient passes through the model's quantised weights; None if it does, or if the model
            is on workers, which raise an error then.
    """

    rope: Rope
    tokenizer: PreTrainedTokenizerBase
    dtype: str
    vocabulary: int
    make_objective: Callable[[Sequence[WeightedText]], Objective]
    gradient_barrier: str | None = None


@contextmanager
def open_backend(
    name: str, *, dtype: str = "auto", device: str = "cpu", workers: str = "1", original_length: int | None = None
) -> Iterator[EvaluationBackend]:
    """Load a model in this process, or once in every worker.

    Args:
        name: Name of the model, as for `longrope.models.load.load`.
        dtype: A key of `longrope.models.load.DTYPES`.
        device: Torch device; with local workers ``cuda`` becomes one device each.
        workers: Number of local processes (1: this process), ``ray`` or ``ray://HOST:PORT``.
        original_length: L0 in tokens, as for `longrope.models.load.load`.

    Raises:
        LongRopeError: If the model cannot be loaded, or the workers cannot be started.
    """
    local = processes(workers)
    if local == 1:
        yield _backend(*load(name, dtype=dtype, device=device, original_length=original_length))
        return
    config, tokenizer = load_config(name, original_length=original_length), load_tokenizer(name)
    check_dtype(dtype)
    build = partial(_build, name, dtype, device, original_length, local)
    pool: WorkerPool = LocalPool(build, local) if local else RayPool(build, workers)
    loaded = (config.dtype or torch.float32) if dtype == "auto" else DTYPES[dtype]

    def make_objective(samples: Sequence[WeightedText]) -> Objective:
        return PooledObjective(pool, samples, [len(sample.tokens) for sample in samples])

    try:
        vocabulary = config.get_text_config().vocab_size
        yield EvaluationBackend(Rope.of(config), tokenizer, str(loaded), vocabulary, make_objective)
    finally:
        pool.close()


def backend_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[EvaluationBackend, dict[str, str]]:
    """Return the backend of a loaded model, and a fingerprint of its weights for journals.

    The fingerprint covers the first numbers of every tensor, so that a run is not resumed with other weights.
    """
    digest = hashlib.sha256()
    for parameter in filter(lambda weights: not weights.is_meta, model.parameters()):  # those are offloaded
        digest.update(parameter.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return _backend(model, tokenizer), {"weights": digest.hexdigest()[:16]}


def _backend(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EvaluationBackend:
    """Return the backend of a model in this process."""
    rope, objective, barrier = Rope.of(model), partial(ModelObjective, model), gradient_barrier(model)
    return EvaluationBackend(rope, tokenizer, str(model.dtype), vocabulary_of(model), objective, barrier)


def processes(workers: str) -> int:
    """Return the number of local processes; 0 on Ray.

    Args:
        workers: Number of local processes, ``ray`` or ``ray://HOST:PORT``.

    Raises:
        LongRopeError: If it is neither.
    """
    if workers == "ray" or workers.startswith("ray://"):
        return 0
    if not workers.isdecimal() or int(workers) == 0:
        raise LongRopeError(f"workers = {workers!r}: not known. Use a number of processes, ray, or ray://HOST:PORT.")
    return int(workers)


def _build(
    name: str, dtype: str, device: str, original_length: int | None, count: int, rank: int
) -> Callable[[Sequence[WeightedText]], Objective]:
    """Load the model in a worker, and return the function that makes objectives on it."""
    device = choose_device(device)
    if device == "cuda" and count:
        device = f"cuda:{rank % torch.cuda.device_count()}"
    if device == "cpu":
        torch.set_num_threads(max(1, _cores() // count) if count else 1)
    model, _ = load(name, dtype=dtype, device=device, original_length=original_length)
    return partial(ModelObjective, model)


def _cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
