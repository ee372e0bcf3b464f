"""One forward pass by several processes: each computes some pieces of the sequence, and all get every key and value."""

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
from longrope.longcontext.layer_chunks import Layer, cache_name, cut, moved, piece_on, slices

TURNS = 4


@dataclass(frozen=True)
class Spread:
    """Which pieces of a sequence a process computes: every one of ``count`` in turn.

    In each turn the process with the last piece has the most to attend to, and the others wait: with 8 processes it has
    22% more than the mean in 4 turns, 5% in 16. So where there would be few turns, pieces are smaller.

    Args:
        rank: of this process.
        count: of processes.
        piece: tokens of all rows together.
    """

    rank: int
    count: int
    piece: int

    def parts(self, rows: int, length: int) -> list[slice]:
        """All pieces of a sequence; at least one for every process.

        Raises:
            LongRopeError: if it has fewer tokens than there are processes.
        """
        if length < self.count:
            raise LongRopeError(f"length = {length} cannot be spread over {self.count} processes; start fewer")
        size = self.piece // rows
        while size > self.piece // (8 * rows) and length < TURNS * self.count * size:
            size //= 2  # and still divides the blocks of keys that a kernel is compiled for
        return slices(length, max(1, min(size, length // self.count)))

    def own(self, rows: int, length: int) -> list[slice]:
        """Those of this process."""
        return self.parts(rows, length)[self.rank :: self.count]


_spread: WeakKeyDictionary[PreTrainedModel, Spread] = WeakKeyDictionary()


def context_parallel(model: PreTrainedModel, piece: int | None = None) -> PreTrainedModel:
    """From now on, losses by token of this model are computed by all processes of the default group together.

    Every process must hold the model and ask for the same losses in the same order; each gets all of them. A process
    keeps the residual stream of its own pieces, and of the whole sequence cos, sin, and keys and values of one layer at
    a time (as in Llama 3's context parallelism, arXiv 2407.21783 section 3.3.2); the embeddings of the whole come
    first. Gradients are not computed this way.

    Args:
        model: a transformers model; returned.
        piece: tokens of all rows together; `piece_on` its device if None.
    """
    _spread[model] = Spread(dist.get_rank(), dist.get_world_size(), piece or piece_on(model.device.type))
    return model


def context_parallel_of(model: PreTrainedModel) -> Spread | None:
    """How a model is spread; None if it is not."""
    return _spread.get(model)


def layer_on_processes(
    how: Spread,
    forward: Callable[..., Any],
    _: int,
    device: torch.device,
    hidden: Tensor,
    *rest: Any,
    **named: Any,
) -> Tensor:
    """Run a decoder layer on the pieces of this process; arguments as of `layer_in_pieces`.

    The first layer gets hidden states of the whole sequence and gives those of the own pieces, one after the other.

    Raises:
        LongRopeError: if gradients are asked for, or the layer's attention sees only whole sequences.
    """
    if torch.is_grad_enabled():
        raise LongRopeError("a gradient cannot be spread over processes; use one, and windows for long texts")
    cache = cache_name(named)
    if rest or cache is None or "position_embeddings" not in named:
        raise LongRopeError("this attention cannot be spread over processes; load the model with attention sdpa")
    cos, sin = named["position_embeddings"]
    parts = how.parts(hidden.shape[0], cos.shape[1])
    own = parts[how.rank :: how.count]
    if hidden.shape[1] == cos.shape[1]:
        every, hidden = hidden, torch.cat([hidden[:, part] for part in own], dim=1)
        every.untyped_storage().resize_(0)  # the model's forward holds on to it
    hidden, layer, gathered, start = moved(hidden, device), Layer(forward, cache, named), _Gathered(how, parts), 0
    for part in own:
        place = slice(start, start := start + part.stop - part.start)
        hidden[:, place] = layer.run([hidden[:, place].to(device), *cut((cos, sin), part)], gathered)
    gathered.end()
    return hidden


class _Gathered:
    """Keys and values of one layer of all processes so far; its attention takes it for a cache."""

    def __init__(self, how: Spread, parts: list[slice]) -> None:
        self.how, self.parts, self.round = how, parts, 0
        self.held: list[Tensor] = []

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, ...]:
        """Exchange a piece of every process; gives all before the end of the own one."""
        if not self.held:
            self.held = [one.new_empty(*one.shape[:2], self.parts[-1].stop, one.shape[3]) for one in (key, value)]
        end = self.parts[self.round * self.how.count + self.how.rank].stop
        self._exchange(key, value)
        return tuple(one[:, :, :end] for one in self.held)

    def end(self) -> None:
        """Take part in the last exchange, where there are more processes than pieces left."""
        if self.round * self.how.count < len(self.parts):
            self._exchange(*(one[:, :, :0] for one in self.held))

    def _exchange(self, *own: Tensor) -> None:
        some = self.parts[self.round * self.how.count :][: self.how.count]
        size = some[0].stop - some[0].start
        for held, one in zip(self.held, own, strict=True):
            sent = one.new_zeros(*one.shape[:2], size, one.shape[3])
            sent[:, :, : one.shape[2]] = one
            found = [torch.empty_like(sent) for _ in range(self.how.count)]
            dist.all_gather(found, sent)
            for part, theirs in zip(some, found, strict=False):
                held[:, :, part] = theirs[:, :, : part.stop - part.start]
        self.round += 1
