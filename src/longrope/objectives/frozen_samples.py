"""Samples of a search in frozen contexts: which tokens are computed, and the contexts of the latest references."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from longrope.data.weighted_text import WeightedText
from longrope.errors import LongRopeError
from longrope.longcontext.chunk_check import HALF_TOLERANCE, TOLERANCES
from longrope.longcontext.frozen_context import FrozenLayer, capture_context, hidden_in_context
from longrope.longcontext.key_rotation import KeyRotation
from longrope.longcontext.tiling import why_whole_layers
from longrope.longcontext.token_losses import last_hidden
from longrope.models.device_memory import free_memory
from longrope.scaling import Scaling
from longrope.search.journal import context_name

BLOCKS, BLOCK = 16, 16  # of tokens of a sample that are computed
LEAD = 16  # tokens before the first loss that counts, computed too where the losses lie together
HEAVY = 2  # tokens whose weight is this many times the median are all computed: answers in a document
QUESTIONS = 128  # tokens of questions and before them, about
COST = 2  # token-evaluations of a computed token, which attends to all tokens before it
PROBE = 48  # tokens of the check
LARGEST_COST = 0.5  # of a pass in contexts, as a part of a full pass; above it they are not worth their noise
SHARE = 0.5  # of the free memory that contexts may take
SETS = 4  # references whose contexts are kept where there is room


def expected_cost(length: int, needles: float) -> int:
    """Return the cost of a pass over a sample in a frozen context, in token-evaluations.

    Args:
        length: Length of the sample in tokens.
        needles: Weight of the answers to questions at its end.
    """
    return min(COST * (BLOCKS * BLOCK * (needles < 1) + QUESTIONS * (needles > 0)), length)


@dataclass(frozen=True)
class FrozenSample:
    """A sample of which some tokens are computed, with the keys and values of another pass for all others.

    Args:
        tokens: Token ids, ``(1, length)``.
        positions: Position ids, ``(1, length)``.
        selected: Indices of the tokens to compute, ``(selected,)``.
        weights: Weight of the loss of the token after each of them, ``(selected,)``, with the sum of the sample's.
    """

    tokens: Tensor
    positions: Tensor
    selected: Tensor
    weights: np.ndarray

    @classmethod
    def of(cls, sample: WeightedText, seed: Sequence[int], device: torch.device) -> FrozenSample:
        """Select the tokens of a sample.

        If the losses that count lie together, these are all of them; else a block of each stretch of the text, and all
        tokens that weigh much more than most: answers, which keep their weights.

        Args:
            sample: The sample.
            seed: Seed of the places of the blocks.
            device: Device of the tensors.
        """
        length, counted = len(sample.tokens), np.flatnonzero(sample.weights)
        weights, sizes = sample.weights, np.abs(sample.weights)
        heavy = sizes > HEAVY * np.median(sizes[counted])
        if length - 1 - sample.skip <= 2 * BLOCKS * BLOCK:
            selected = np.arange(max(0, sample.skip - LEAD), length - 1)
        else:
            rng = np.random.default_rng(seed)
            strata = np.array_split(np.flatnonzero(weights * ~heavy), BLOCKS)
            starts = [indices[rng.integers(max(1, len(indices) - BLOCK + 1))] for indices in strata if len(indices)]
            blocks = np.minimum(starts, length - 1 - BLOCK)[:, None] + np.arange(BLOCK)
            answers = (np.flatnonzero(heavy)[:, None] - np.arange(LEAD + 1)).clip(0)
            selected = np.unique(np.concatenate([blocks.ravel(), answers.ravel()]))
        light, chosen = weights * ~heavy, weights[selected]
        weights = np.where(heavy[selected], chosen, chosen * (light.sum() / light[selected].sum()))
        positions = np.arange(length) if sample.positions is None else sample.positions
        tokens, places, indices = (
            torch.from_numpy(array).to(device) for array in (sample.tokens[None], positions[None], selected)
        )
        return cls(tokens, places, indices, weights)

    @property
    def targets(self) -> Tensor:
        """Token ids of which the last ``selected`` are those that the losses are of, ``(1, selected + 1)``."""
        return self.tokens[:, torch.cat([self.selected[:1], self.selected + 1])]


class FrozenSamples:
    """The samples of an objective in frozen contexts.

    Args:
        model: Causal language model.
        samples: Samples of the objective.
    """

    def __init__(self, model: PreTrainedModel, samples: Sequence[WeightedText]) -> None:
        self.model, self.samples, self.device = model, samples, model.device
        self._kept: OrderedDict[tuple[Scaling, int], tuple[FrozenSample, list[FrozenLayer]]] = OrderedDict()
        self._most = len(samples)
        self._rotations: list[KeyRotation] = []  # of the layers, which are the same in every context

    @cached_property
    def costs(self) -> tuple[int, ...]:
        """Cost of a pass over each sample in a context, in token-evaluations."""
        selected = [len(FrozenSample.of(sample, (0,), self.device).selected) for sample in self.samples]
        pairs = zip(selected, self.samples, strict=True)
        return tuple(min(COST * count, len(sample.tokens)) for count, sample in pairs)

    @property
    def pay(self) -> bool:
        """Whether passes in contexts cost clearly less than full ones; not on short samples."""
        return sum(self.costs) <= LARGEST_COST * sum(len(sample.tokens) for sample in self.samples)

    def why_full_passes(self) -> str | None:
        """Return why a search must run full passes; None if it can use frozen contexts."""
        reason = why_whole_layers(self.model)
        if reason:
            return reason
        try:
            needed = self._checked_bytes_per_token() * sum(len(sample.tokens) for sample in self.samples)
        except LongRopeError as error:
            return str(error)
        except Exception as error:  # each layer of an unknown kind fails in its own way
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return f"its layers do not run on some tokens alone: {type(error).__name__}"
        for device in dict.fromkeys([str(self.model.device), "cpu"]):
            room = SHARE * (free_memory(device) or 0)
            if needed <= room:
                sets = min(SETS, room / needed)
                self.device, self._most = torch.device(device), int(sets * len(self.samples))
                return None
        return f"keys and values of all samples take {needed / 2**30:.1f} GiB, more than half of the free memory"

    def has(self, reference: Scaling, index: int) -> bool:
        """Return whether the context of a sample under a reference is kept."""
        return (reference, index) in self._kept

    def sample(self, reference: Scaling, index: int) -> FrozenSample:
        """Return a sample with the tokens that are computed in its context, which is kept."""
        return self._kept[reference, index][0]

    @torch.no_grad()
    def capture(self, reference: Scaling, index: int) -> Tensor:
        """Return the last hidden states of a sample ``(1, length, hidden)`` by a full pass, and keep its context.

        The model must have the factors of the reference.
        """
        seed = (index, int(context_name(reference), 16))  # other tokens in every context: a search fits none of them
        sample = FrozenSample.of(self.samples[index], seed, self.model.device)
        while len(self._kept) >= self._most:
            self._kept.popitem(last=False)
        contexts, hidden = capture_context(
            self.model, sample.tokens, sample.positions, keep_on=self.device, rotations=self._rotations
        )
        self._rotations = [context.rotation for context in contexts]
        self._kept[reference, index] = (sample, contexts)
        return hidden

    @contextmanager
    def hidden(self, reference: Scaling, index: int) -> Iterator[Tensor]:
        """Yield the last hidden states of the selected tokens, as `hidden_in_context` does, in a context that is kept.

        The model must have the factors of a candidate.
        """
        sample, contexts = self._kept[reference, index]
        self._kept.move_to_end((reference, index))
        with hidden_in_context(self.model, sample.tokens, sample.positions, sample.selected, contexts) as hidden:
            yield hidden

    def release(self) -> None:
        """Free the memory of all contexts."""
        self._kept.clear()

    @torch.no_grad()
    def _checked_bytes_per_token(self) -> float:
        """Return the bytes of a context for each token, after a check that it gives the hidden states of a full pass.

        Raises:
            LongRopeError: If it does not.
        """
        tokens = torch.from_numpy(self.samples[0].tokens[None, :PROBE]).to(self.model.device)
        positions, selected = torch.arange(PROBE, device=tokens.device)[None], torch.arange(PROBE // 2, PROBE)
        contexts, hidden = capture_context(self.model, tokens, positions)
        expected = last_hidden(self.model, tokens)[0]
        selected = selected.to(tokens.device)
        with hidden_in_context(self.model, tokens, positions, selected, contexts) as in_context:
            pairs = [(hidden[0], expected), (in_context[0], expected[selected])]
        for actual, plain in pairs:
            error = float(((actual - plain).norm(dim=-1) / plain.norm(dim=-1).clamp_min(1e-6)).median())
            if not error <= TOLERANCES.get(self.model.dtype, HALF_TOLERANCE):  # NaN included
                raise LongRopeError(f"its hidden states in a frozen context differ by {error:.2g}")
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in contexts) / PROBE
