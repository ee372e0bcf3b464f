"""The objective of a search on a model: the losses of candidates on items, and their gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from longrope.data.weighted_text import WeightedText
from longrope.longcontext.cpu_offload import offload_activations
from longrope.longcontext.tiling import tiled_layers
from longrope.longcontext.token_losses import head_losses, last_hidden, token_losses
from longrope.models.device_memory import explain_out_of_memory
from longrope.models.patch import patch
from longrope.models.rotary_embedding import LongRoPE
from longrope.models.rotary_slot import RescaledRotary, find_rotary_slot
from longrope.objectives.factor_gradient import Differentiable, frozen
from longrope.scaling import Scaling
from longrope.search.protocol import Batch, CandidateLoss


class ModelObjective:
    """The mean over items of a model's loss under given factors; see `longrope.search.protocol.Objective`.

    The model's weights and mode stay as they are, and its own rotary module comes back after every call.

    Args:
        model: a causal language model.
        items: what counts.

    Raises:
        LongRopeError: if the model's rotary embedding is not one that factors describe.
    """

    def __init__(self, model: PreTrainedModel, items: Sequence[WeightedText]) -> None:
        self.model, self.items, self.rotary = model, items, find_rotary_slot(model)
        self.tokens = tuple(len(item.tokens) for item in items)
        with patch(model, Scaling([2.0] * (self.rotary.rope.dim // 2))):  # refuses a model that factors do not reach
            pass

    def evaluate(self, batches: Sequence[Batch], *, gradient: bool) -> Iterator[tuple[int, list[CandidateLoss]]]:
        """The answers to each batch in turn."""
        for index, batch in enumerate(batches):
            yield index, [self._slope(*pair) for pair in batch] if gradient else self._losses(batch)

    def _losses(self, batch: Batch) -> list[CandidateLoss]:
        items = [self.items[item] for _, item in batch]
        scalings = [scaling for scaling, _ in batch]
        tokens, skip = np.stack([item.tokens for item in items]), min(item.skip for item in items)
        reach, positions = max(item.reach for item in items), _positions(items)
        with self._installed(self._embedding(scalings if len(set(scalings)) > 1 else scalings[:1], reach)):
            losses = token_losses(self.model, tokens, positions=positions, batch=len(tokens), skip=skip)
        return [
            CandidateLoss(float(row.astype(np.float64) @ item.weights)) for row, item in zip(losses, items, strict=True)
        ]

    def _slope(self, scaling: Scaling, index: int) -> CandidateLoss:
        """One document forwards and backwards, the head in chunks."""
        item, model = self.items[index], self.model
        module = Differentiable(self._embedding([scaling], item.reach))
        tokens = torch.from_numpy(item.tokens)[None].to(model.device)
        weights = torch.from_numpy(item.weights).float().to(model.device)
        where = f"for a gradient on {model.device}"
        remedy = "lower the length, use dtype bfloat16, or a method without gradients (--method cma)"
        total = 0.0
        with (
            frozen(model),
            self._installed(module),
            tiled_layers(model),
            explain_out_of_memory(len(item.tokens), where, remedy),
        ):
            at = _positions([item])
            with offload_activations(model.device):
                hidden = last_hidden(model, tokens, None if at is None else torch.from_numpy(at))
            leaf = hidden.detach().requires_grad_()
            for start, end, losses in head_losses(model, tokens, leaf, item.skip, divisor=4):
                part = (losses[0] * weights[start:end]).sum()
                part.backward()
                total += float(part.detach())
            hidden.backward(leaf.grad)
        slopes = module.offset.grad
        assert slopes is not None
        return CandidateLoss(total, tuple(slopes.tolist()))

    def _embedding(self, scalings: Sequence[Scaling], length: int) -> LongRoPE:
        return LongRoPE.static(self.rotary.rope, scalings, reach=length).to(self.model.device)

    @contextmanager
    def _installed(self, module: nn.Module) -> Iterator[None]:
        self.rotary.install(RescaledRotary(self.rotary.original, module))
        try:
            yield
        finally:
            self.rotary.install(self.rotary.module)


def _positions(items: Sequence[WeightedText]) -> np.ndarray | None:
    """``(items, length)`` if any of them has its own."""
    if all(item.positions is None for item in items):
        return None
    return np.stack([np.arange(len(item.tokens)) if item.positions is None else item.positions for item in items])
