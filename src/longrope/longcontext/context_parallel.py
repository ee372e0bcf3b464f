"""Context parallelism: several processes compute the chunks of one forward pass and exchange keys and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from longrope.errors import LongRopeError
from longrope.longcontext.layer_chunks import cache_name, chunk_size_on, chunk_slices, offloaded
from longrope.longcontext.recomputed_layer import Layer, take
from longrope.models.peft_model import check_plain_model

TURNS = 4


@dataclass(frozen=True)
class ContextParallelGroup:
    """A group of processes that take the chunks of a sequence in turn.

    In each turn the process with the last chunk has the most to attend to, and the others wait. With 8 processes it has
    22% more than the mean in 4 turns, and 5% in 16. Chunks are therefore smaller where there would be few turns.

    Args:
        rank: Rank of this process.
        size: Number of processes.
        chunk_size: Tokens of all rows together in a chunk.
    """

    rank: int
    size: int
    chunk_size: int

    def chunks(self, rows: int, length: int) -> list[slice]:
        """Return all chunks of a sequence, at least one for every process.

        Raises:
            LongRopeError: If the sequence has fewer tokens than there are processes.
        """
        if length < self.size:
            raise LongRopeError(f"length = {length}: fewer tokens than the {self.size} processes. Start fewer.")
        tokens = self.chunk_size // rows
        while tokens > self.chunk_size // (8 * rows) and length < TURNS * self.size * tokens:
            tokens //= 2  # and still divides the blocks of keys that a kernel is compiled for
        return chunk_slices(length, max(1, min(tokens, length // self.size)))

    def rank_chunks(self, rows: int, length: int) -> list[slice]:
        """Return the chunks of a sequence that this process computes."""
        return self.chunks(rows, length)[self.rank :: self.size]


_groups: WeakKeyDictionary[PreTrainedModel, ContextParallelGroup] = WeakKeyDictionary()


def context_parallel(model: PreTrainedModel, chunk_size: int | None = None) -> PreTrainedModel:
    """Make all processes of the default group compute the token losses of this model together, from now on.

    Every process must hold the model and ask for the same losses in the same order; each gets all of them. A process
    keeps the residual stream of its own chunks, and of the whole sequence cos, sin, and the keys and values of one
    layer at a time (as in Llama 3's context parallelism, arXiv 2407.21783 section 3.3.2). The embeddings of the whole
    sequence come first. Gradients cannot be computed this way.

    Args:
        model: A transformers model; returned.
        chunk_size: Tokens of all rows together in a chunk; `chunk_size_on` the model's device if None.

    Raises:
        LongRopeError: If the model is wrapped by ``peft`` or for several devices, or no group of processes is there.
    """
    check_plain_model(model)
    if not dist.is_initialized():
        raise LongRopeError(
            "context_parallel: torch.distributed has no group of processes. Start them with torchrun, and call "
            "torch.distributed.init_process_group() first."
        )
    size = chunk_size or chunk_size_on(model.device.type)
    _groups[model] = ContextParallelGroup(dist.get_rank(), dist.get_world_size(), size)
    return model


def context_parallel_of(model: PreTrainedModel) -> ContextParallelGroup | None:
    """Return the group of processes that computes a model's losses; None for this process alone."""
    return _groups.get(model)


def layer_on_processes(
    group: ContextParallelGroup,
    forward: Callable[..., Any],
    _: int,
    device: torch.device,
    hidden: Tensor,
    *rest: Any,
    **named: Any,
) -> Tensor:
    """Run a decoder layer on the chunks of this process, with the arguments of `layer_in_chunks`.

    The first layer gets hidden states of the whole sequence and returns those of this process's chunks, one after the
    other.

    Raises:
        LongRopeError: If gradients are on, or the layer's attention sees only whole sequences.
    """
    if torch.is_grad_enabled():
        raise LongRopeError("gradients: several processes cannot compute one together. Start one, with short windows.")
    cache = cache_name(named)
    if rest or cache is None or "position_embeddings" not in named:
        raise LongRopeError("attention: several processes cannot share this kind. Load the model with attention sdpa.")
    cos, sin = named["position_embeddings"]
    chunks = group.chunks(hidden.shape[0], cos.shape[1])
    rank_chunks = chunks[group.rank :: group.size]
    if hidden.shape[1] == cos.shape[1]:
        embeddings, hidden = hidden, torch.cat([hidden[:, chunk] for chunk in rank_chunks], dim=1)
        embeddings.untyped_storage().resize_(0)  # the model's forward still refers to it
    hidden = offloaded(hidden, device)
    layer = Layer(forward, cache, named)
    kv = _GatheredCache(group, chunks)
    start = 0
    for chunk in rank_chunks:
        rows = slice(start, start + chunk.stop - chunk.start)
        hidden[:, rows] = layer.run([hidden[:, rows].to(device), *take((cos, sin), chunk)], kv)
        start = rows.stop
    kv.finish()
    return hidden


class _GatheredCache:
    """Keys and values of one layer from all processes so far; its attention takes it for a cache."""

    def __init__(self, group: ContextParallelGroup, chunks: list[slice]) -> None:
        self.group = group
        self.chunks = chunks
        self.turn = 0
        self.kv: list[Tensor] = []

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, ...]:
        """Exchange a chunk with every process and return all keys and values up to the end of this process's chunk."""
        if not self.kv:
            length = self.chunks[-1].stop
            self.kv = [tensor.new_empty(*tensor.shape[:2], length, tensor.shape[3]) for tensor in (key, value)]
        end = self.chunks[self.turn * self.group.size + self.group.rank].stop
        self._exchange(key, value)
        return tuple(tensor[:, :, :end] for tensor in self.kv)

    def finish(self) -> None:
        """Take part in the last exchange, where fewer chunks remain than there are processes."""
        if self.turn * self.group.size < len(self.chunks):
            self._exchange(*(tensor[:, :, :0] for tensor in self.kv))

    def _exchange(self, *chunk_kv: Tensor) -> None:
        chunks = self.chunks[self.turn * self.group.size :][: self.group.size]
        size = chunks[0].stop - chunks[0].start
        for total, tensor in zip(self.kv, chunk_kv, strict=True):
            sent = tensor.new_zeros(*tensor.shape[:2], size, tensor.shape[3])
            sent[:, :, : tensor.shape[2]] = tensor
            received = [torch.empty_like(sent) for _ in range(self.group.size)]
            dist.all_gather(received, sent)
            for chunk, gathered in zip(chunks, received, strict=False):
                total[:, :, chunk] = gathered[:, :, : chunk.stop - chunk.start]
        self.turn += 1
