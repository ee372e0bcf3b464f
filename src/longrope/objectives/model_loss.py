"""The objective of a search on a model: the losses of candidates on samples, and their gradients."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longrope.data.weighted_text import WeightedText
from longrope.errors import LongRopeError
from longrope.longcontext.cpu_offload import offload_activations
from longrope.longcontext.tiling import tiled_layers, why_whole_layers
from longrope.longcontext.token_losses import head_losses, last_hidden, token_losses
from longrope.models.adapter import switched_adapter
from longrope.models.device_memory import explain_out_of_memory
from longrope.models.patch import patch
from longrope.models.quantized import gradient_barrier
from longrope.models.rotary_embedding import LongRoPE
from longrope.models.rotary_slot import find_rotary_slot
from longrope.objectives.factor_gradient import Differentiable, frozen
from longrope.objectives.frozen_samples import FrozenSamples
from longrope.scaling import Scaling
from longrope.search.evaluator import no_gradient
from longrope.search.protocol import Batch, CandidateLoss
from longrope.search.registry import gradient_free

log = logging.getLogger("longrope")


class ModelObjective:
    """The mean over samples of a model's loss under given factors; see `longrope.search.protocol.Objective`.

    The model's weights and mode do not change, and its own rotary module is restored after every call.

    Args:
        model: Causal language model.
        samples: Samples to compute losses of.

    Raises:
        LongRopeError: If there are no samples, or factors cannot describe the model's rotary embedding.
    """

    def __init__(self, model: PreTrainedModel, samples: Sequence[WeightedText]) -> None:
        if not samples or not all(isinstance(sample, WeightedText) for sample in samples):
            raise LongRopeError(f"samples = {samples!r:.60}: not weighted texts. Make some with perplexity_texts.")
        self.model, self.samples, self.rotary = model, samples, find_rotary_slot(model)
        self.tokens = tuple(len(sample.tokens) for sample in samples)
        self.frozen = FrozenSamples(model, samples)
        with patch(model, Scaling([2.0] * (self.rotary.rope.dim // 2))):  # refuses a model that factors do not reach
            pass
        why_whole_layers(model, length=min(self.tokens))  # its check has one row, and a batch may have factors by row

    @cached_property
    def context_tokens(self) -> Sequence[int]:
        """Cost of a pass over each sample in a frozen context; empty, after a line in the log, where there is none."""
        if not self.frozen.pay:
            return ()
        reason = self.frozen.why_full_passes()
        if reason is not None:
            log.warning("Note: the search runs full passes instead of frozen contexts (%s).", reason)
        return self.frozen.costs if reason is None else ()

    @cached_property
    def _gradient_barrier(self) -> str | None:
        return gradient_barrier(self.model)

    def evaluate(self, batches: Sequence[Batch], *, gradient: bool) -> Iterator[tuple[int, list[CandidateLoss]]]:
        """Yield the index of each batch and its losses, in order."""
        for index, batch in enumerate(batches):
            yield index, [self._loss_and_gradient(*pair) for pair in batch] if gradient else self._losses(batch)

    def evaluate_in_context(
        self, batches: Sequence[Batch], *, gradient: bool, reference: Scaling
    ) -> Iterator[tuple[int, list[CandidateLoss]]]:
        """Yield the index of each batch and its losses, in order; on some tokens, in contexts of the reference."""
        loss = self._gradient_in_context if gradient else self._loss_in_context
        for index, batch in enumerate(batches):
            yield index, [loss(*pair, reference) for pair in batch]

    def release_contexts(self) -> None:
        """Free the memory of the frozen contexts that are kept."""
        self.frozen.release()

    def _losses(self, batch: Batch) -> list[CandidateLoss]:
        samples = [self.samples[index] for _, index in batch]
        scalings = [scaling for scaling, _ in batch]
        tokens = np.stack([sample.tokens for sample in samples])
        skip, reach = min(sample.skip for sample in samples), max(sample.reach for sample in samples)
        with self._installed(self._embedding(scalings if len(set(scalings)) > 1 else scalings[:1], reach)):
            losses = token_losses(self.model, tokens, positions=_positions(samples), batch=len(tokens), skip=skip)
        pairs = zip(losses, samples, strict=True)
        return [CandidateLoss(float(row.astype(np.float64) @ sample.weights)) for row, sample in pairs]

    def _capture(self, reference: Scaling, index: int) -> CandidateLoss:
        """Return the loss of a candidate by a full pass that keeps the context of the sample."""
        sample, remedy = self.samples[index], "lower the length or use dtype bfloat16"
        purpose = f"for a frozen context on {self.model.device}"
        with (
            self._installed(self._embedding([reference], sample.reach)),
            torch.no_grad(),
            explain_out_of_memory(len(sample.tokens), purpose, remedy),
        ):
            hidden = self.frozen.capture(reference, index)
            tokens = torch.from_numpy(sample.tokens)[None].to(self.model.device)
            return CandidateLoss(self._weighted(tokens, hidden, sample.weights, sample.skip))

    @torch.no_grad()
    def _loss_in_context(self, candidate: Scaling, index: int, reference: Scaling) -> CandidateLoss:
        """Return the loss of a candidate on selected tokens in a context of the reference; of itself on all tokens."""
        if candidate == reference or not self.frozen.has(reference, index):
            answer = self._capture(reference, index)
            if candidate == reference:
                return answer
        sample = self.frozen.sample(reference, index)
        with (
            self._installed(self._embedding([candidate], self.samples[index].reach)),
            self.frozen.hidden(reference, index) as hidden,
        ):
            return CandidateLoss(self._weighted(sample.targets, hidden, sample.weights))

    def _weighted(self, tokens: Tensor, hidden: Tensor, weights: np.ndarray, skip: int = 0) -> float:
        """Return the weighted sum of the losses of all tokens but the first ones."""
        losses = [values[0].cpu() for _, _, values in head_losses(self.model, tokens, hidden, skip)]
        return float(torch.cat(losses).double().numpy() @ weights[skip:])

    def _loss_and_gradient(self, scaling: Scaling, index: int) -> CandidateLoss:
        """Run one sample forwards and backwards."""
        sample, device = self.samples[index], self.model.device
        module, positions = Differentiable(self._embedding([scaling], sample.reach)), _positions([sample])
        tokens = torch.from_numpy(sample.tokens)[None].to(device)
        with self._differentiable(module, index), tiled_layers(self.model, shape=(1, len(sample.tokens))):
            with offload_activations(device):
                hidden = last_hidden(self.model, tokens, None if positions is None else torch.from_numpy(positions))
            return self._backward(module, tokens, hidden, sample.weights, sample.skip)

    def _gradient_in_context(self, candidate: Scaling, index: int, reference: Scaling) -> CandidateLoss:
        """Run the selected tokens of a sample forwards and backwards in a context of the reference."""
        if not self.frozen.has(reference, index):
            self._capture(reference, index)
        sample = self.frozen.sample(reference, index)
        module = Differentiable(self._embedding([candidate], self.samples[index].reach))
        with self._differentiable(module, index), self.frozen.hidden(reference, index) as hidden:
            return self._backward(module, sample.targets, hidden, sample.weights)

    @contextmanager
    def _differentiable(self, module: Differentiable, index: int) -> Iterator[None]:
        """Put factors with gradients into the model, whose weights have none.

        Raises:
            LongRopeError: No gradient passes through the model's quantised weights.
        """
        if self._gradient_barrier:
            raise no_gradient(gradient_free(), self._gradient_barrier)
        length, purpose = len(self.samples[index].tokens), f"for a gradient on {self.model.device}"
        remedy = "lower the length, use dtype bfloat16, or a method without gradients (cma)"
        with frozen(self.model), self._installed(module), explain_out_of_memory(length, purpose, remedy):
            yield

    def _backward(
        self, module: Differentiable, tokens: Tensor, hidden: Tensor, weights: np.ndarray, skip: int = 0
    ) -> CandidateLoss:
        """Return the weighted loss of last hidden states and its gradient, with the head in chunks."""
        total, leaf = 0.0, hidden.detach().requires_grad_()
        by_token = torch.from_numpy(weights).float().to(tokens.device)  # where the losses are
        for start, end, losses in head_losses(self.model, tokens, leaf, skip, divisor=4):
            chunk = (losses[0] * by_token[start:end]).sum()
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
