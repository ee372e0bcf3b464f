"""The objective of a search on a model: the losses of candidates on samples, and their gradients."""

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
from longrope.models.adapter import switched_adapter
from longrope.models.device_memory import explain_out_of_memory
from longrope.models.patch import patch
from longrope.models.rotary_embedding import LongRoPE
from longrope.models.rotary_slot import find_rotary_slot
from longrope.objectives.factor_gradient import Differentiable, frozen
from longrope.scaling import Scaling
from longrope.search.protocol import Batch, CandidateLoss


class ModelObjective:
    """The mean over samples of a model's loss under given factors; see `longrope.search.protocol.Objective`.

    The model's weights and mode do not change, and its own rotary module is restored after every call.

    Args:
        model: Causal language model.
        samples: Samples to compute losses of.

    Raises:
        LongRopeError: If factors cannot describe the model's rotary embedding.
    """

    def __init__(self, model: PreTrainedModel, samples: Sequence[WeightedText]) -> None:
        self.model, self.samples, self.rotary = model, samples, find_rotary_slot(model)
        self.tokens = tuple(len(sample.tokens) for sample in samples)
        with patch(model, Scaling([2.0] * (self.rotary.rope.dim // 2))):  # refuses a model that factors do not reach
            pass

    def evaluate(self, batches: Sequence[Batch], *, gradient: bool) -> Iterator[tuple[int, list[CandidateLoss]]]:
        """Yield the index of each batch and its losses, in order."""
        for index, batch in enumerate(batches):
            yield index, [self._loss_and_gradient(*pair) for pair in batch] if gradient else self._losses(batch)

    def _losses(self, batch: Batch) -> list[CandidateLoss]:
        samples = [self.samples[index] for _, index in batch]
        scalings = [scaling for scaling, _ in batch]
        tokens = np.stack([sample.tokens for sample in samples])
        skip, reach = min(sample.skip for sample in samples), max(sample.reach for sample in samples)
        with self._installed(self._embedding(scalings if len(set(scalings)) > 1 else scalings[:1], reach)):
            losses = token_losses(self.model, tokens, positions=_positions(samples), batch=len(tokens), skip=skip)
        pairs = zip(losses, samples, strict=True)
        return [CandidateLoss(float(row.astype(np.float64) @ sample.weights)) for row, sample in pairs]

    def _loss_and_gradient(self, scaling: Scaling, index: int) -> CandidateLoss:
        """Run one sample forwards and backwards, with the head in chunks."""
        sample, model = self.samples[index], self.model
        module = Differentiable(self._embedding([scaling], sample.reach))
        tokens = torch.from_numpy(sample.tokens)[None].to(model.device)
        weights = torch.from_numpy(sample.weights).float().to(model.device)
        positions = _positions([sample])
        purpose = f"for a gradient on {model.device}"
        remedy = "lower the length, use dtype bfloat16, or a method without gradients (cma)"
        total = 0.0
        with (
            frozen(model),
            self._installed(module),
            tiled_layers(model, shape=(1, len(sample.tokens))),
            explain_out_of_memory(len(sample.tokens), purpose, remedy),
        ):
            with offload_activations(model.device):
                hidden = last_hidden(model, tokens, None if positions is None else torch.from_numpy(positions))
            leaf = hidden.detach().requires_grad_()
            for start, end, losses in head_losses(model, tokens, leaf, sample.skip, divisor=4):
                chunk = (losses[0] * weights[start:end]).sum()
                chunk.backward()
                total += float(chunk.detach())
            hidden.backward(leaf.grad)
        gradient = module.offset.grad
        assert gradient is not None
        return CandidateLoss(total, tuple(gradient.tolist()))

    def _embedding(self, scalings: Sequence[Scaling], length: int) -> LongRoPE:
        return LongRoPE.static(self.rotary.rope, scalings, reach=length).to(self.model.device)

    @contextmanager
    def _installed(self, module: nn.Module) -> Iterator[None]:
        self.rotary.rescale(module, switched_adapter(self.model))
        try:
            yield
        finally:
            self.rotary.restore()


def _positions(samples: Sequence[WeightedText]) -> np.ndarray | None:
    """Return the positions ``(samples, length)``, or None if no sample has its own."""
    if all(sample.positions is None for sample in samples):
        return None
    positions = [(sample.positions, len(sample.tokens)) for sample in samples]
    return np.stack([np.arange(length) if array is None else array for array, length in positions])
