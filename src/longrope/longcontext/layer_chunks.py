"""One layer of a model on pieces of the sequence, forwards and backwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longrope.longcontext.cpu_offload import room_for_kept

CACHES = ("past_key_values", "layer_past")  # how layers call the argument


def in_pieces(
    forward: Callable[..., Any], piece: int, device: torch.device, x: Tensor, *rest: Any, **named: Any
) -> Any:
    """What looks at each token alone, piece by piece: in place, or with gradients computed anew backwards."""
    if rest or named or x.dim() != 3 or not x.is_floating_point():
        return forward(x, *rest, **named)
    parts = _parts(x, piece)
    if torch.is_grad_enabled():
        sizes = [part.stop - part.start for part in parts]
        return torch.cat([checkpoint(forward, one, use_reentrant=False) for one in x.split(sizes, dim=1)], dim=1)
    for part in parts:
        x[:, part] = forward(x[:, part].to(device))
    return x


def layer_in_chunks(
    forward: Callable[..., Any], piece: int, device: torch.device, hidden: Tensor, *rest: Any, **named: Any
) -> Any:
    """A decoder layer: its attention meets keys and values of all pieces so far.

    Args:
        forward: the layer's own.
        piece: tokens of all rows together.
        device: where it is computed; without gradients a large ``hidden`` moves to main memory.
        hidden: ``(batch, tokens, hidden)``; overwritten with the result where no gradients are asked for.
        rest: further positional arguments; with any, the layer just runs.
        named: as the layers of transformers take them, cos and sin as ``position_embeddings``.
    """
    if rest or "position_embeddings" not in named:
        return forward(hidden, *rest, **named)
    cache = cache_name(named)
    parts = [slice(0, hidden.shape[1])] if cache is None else _parts(hidden, piece)
    layer = Layer(forward, cache, named)
    inputs = (hidden, *named["position_embeddings"])
    if torch.is_grad_enabled():
        return _Pieces.apply(*inputs, layer, parts)
    held = _Held(hidden.shape[1]) if len(parts) > 1 else None
    hidden = moved(hidden, device)
    for part in parts:
        hidden[:, part] = layer.run([hidden[:, part].to(device), *cut(inputs[1:], part)], held)
    return hidden


def piece_on(kind: str) -> int:
    """Tokens that are enough for full speed and few beside the residual stream, on a kind of device."""
    return 16384 if kind == "cuda" else 2048


def moved(hidden: Tensor, device: torch.device) -> Tensor:
    """Hidden states in main memory where the device has no room for them."""
    if hidden.nbytes <= room_for_kept(device) or (there := hidden.cpu()) is hidden:
        return hidden
    hidden.untyped_storage().resize_(0)  # the model's forward holds on to it
    return there


def cache_name(named: Mapping[str, Any]) -> str | None:
    """How a layer with these arguments calls its cache; None if its attention must see the whole sequence."""
    name = next((name for name in CACHES if name in named), None)
    return None if name is None or named[name] is not None or named.get("attention_mask") is not None else name


def slices(length: int, size: int) -> list[slice]:
    """A sequence in pieces of ``size`` tokens; the last one may have fewer."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _parts(hidden: Tensor, piece: int) -> list[slice]:
    return slices(hidden.shape[1], max(1, piece // hidden.shape[0]))


def cut(tensors: Sequence[Tensor], part: slice) -> list[Tensor]:
    """A part of the tokens of each."""
    return [one[:, part] for one in tensors]


@dataclass(frozen=True)
class Layer:
    """A layer's own forward, the name of its cache, and its other arguments."""

    forward: Callable[..., Any]
    cache: str | None
    named: dict[str, Any]

    def run(self, inputs: Sequence[Tensor], held: Any) -> Tensor:
        """Its output for a part's hidden states, cos and sin.

        Args:
            inputs: the three.
            held: keys and values before, with an ``update`` like that of transformers' caches; None where the part is
                the whole sequence.
        """
        hidden, cos, sin = inputs
        named = {**self.named, "position_embeddings": (cos, sin)}
        if held is not None and self.cache is not None:
            # attention takes jumps between positions for borders between documents: it gets no positions
            named |= {self.cache: held, "position_ids": None}
        return self.forward(hidden, **named)


class _Held:
    """Keys and values of one layer so far; its attention takes it for a cache."""

    def __init__(self, length: int, *, enough: bool = False) -> None:
        self.length, self.end, self.enough = length, 0, enough
        self.keys = self.values = torch.empty(0)

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add a piece's; gives all so far."""
        if not self.end:
            self.keys, self.values = (one.new_empty(*one.shape[:2], self.length, one.shape[3]) for one in (key, value))
        start, self.end = self.end, self.end + key.shape[2]
        self.keys[:, :, start : self.end], self.values[:, :, start : self.end] = key, value
        if self.enough:
            raise _EnoughError
        return self.keys[:, :, : self.end], self.values[:, :, : self.end]


class _EnoughError(Exception):
    """Keys and values are there; what the layer does then is not wanted."""


class _Replayed:
    """Keys and values of the pieces before, as leaves, and then a piece's own."""

    def __init__(self, past: tuple[Tensor, ...]) -> None:
        self.past, self.own = past, ()

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, ...]:
        """All of them; keeps the own ones."""
        self.own = (key, value)
        return tuple(torch.cat(pair, dim=2) for pair in zip(self.past, self.own, strict=True))


class _Pieces(torch.autograd.Function):
    """A layer that keeps its input alone. Backwards each piece is computed anew, the last one first.

    By then a piece's keys and values have got their gradients from all later ones.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, cos: Tensor, sin: Tensor, layer: Layer, parts: list[slice]) -> Tensor:
        ctx.save_for_backward(hidden)
        ctx.embeddings, ctx.layer, ctx.parts = (cos, sin), layer, parts
        out, held = torch.empty_like(hidden), _Held(hidden.shape[1]) if len(parts) > 1 else None
        for part in parts:
            out[:, part] = layer.run(cut((hidden, cos, sin), part), held)
        return out

    @staticmethod
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        layer, parts, inputs = ctx.layer, ctx.parts, (*ctx.saved_tensors, *ctx.embeddings)
        wanted = [i for i in range(3) if ctx.needs_input_grad[i]]
        totals = [torch.zeros_like(inputs[i]) for i in wanted]
        held = _keys_and_values(layer, parts, inputs) if len(parts) > 1 else None
        by_held = [] if held is None else [torch.zeros_like(held.keys), torch.zeros_like(held.values)]
        for part in reversed(parts):
            with torch.enable_grad():
                leaves = [one.detach().requires_grad_() for one in cut(inputs, part)]
                replayed = None
                if held is not None:
                    past = (held.keys[:, :, : part.start], held.values[:, :, : part.start])
                    replayed = _Replayed(tuple(one.detach().requires_grad_() for one in past))
                own = [layer.run(leaves, replayed)]
            given, sources = [by_out[:, part]], [leaves[i] for i in wanted]
            if replayed is not None:
                own += replayed.own
                given += [one[:, :, part] for one in by_held]
                sources += replayed.past
            slopes = torch.autograd.grad(own, sources, given, allow_unused=True)
            places = [*cut(totals, part), *(one[:, :, : part.start] for one in by_held)]
            for place, slope in zip(places, slopes, strict=True):
                if slope is not None:  # a layer may not rotate at all
                    place += slope
        by_input = dict(zip(wanted, totals, strict=True))
        return *(by_input.get(i) for i in range(3)), None, None


def _keys_and_values(layer: Layer, parts: list[slice], inputs: Sequence[Tensor]) -> _Held:
    """Of all pieces, computed anew."""
    held = _Held(inputs[0].shape[1], enough=True)
    for part in parts:
        with suppress(_EnoughError):
            layer.run(cut(inputs, part), held)
    return held
