"""A search whose factors must keep short texts: a limit on their loss, instead of a share of the mean."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longrope.data.documents import Document
from longrope.data.split import draw_tokens
from longrope.data.weighted_text import WeightedText, perplexity_texts
from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.search.protocol import (
    Batch,
    CandidateLoss,
    ContextObjective,
    Objective,
    context_tokens,
    release_contexts,
)
from longrope.search.run import SearchObjectives

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PENALTY = 10.0  # nats of loss for each nat above the limit
REWARD = 0.01  # nats for each nat below it: too little to pay for, but the journal keeps the loss
SHORT_TOKENS = 4096  # of all short texts together, where L0 is short
TAIL = 512  # last tokens of a short text that count, all of which are computed in frozen contexts


@dataclass(frozen=True)
class KeepShort:
    """The mean loss of long samples, plus a penalty for each short one whose loss is above its limit.

    Args:
        objective: Objective of the long samples and, after them, the short ones.
        limits: Highest losses of the short samples in nats.
        share: What they allow above the loss under the original factors, as a change of perplexity.
    """

    objective: Objective
    limits: Sequence[float]
    share: float

    @classmethod
    def of(cls, objective: Objective, rope: Rope, short: int, share: float) -> KeepShort:
        """Return the objective that allows short samples a higher perplexity than under the original factors.

        Args:
            objective: Objective of the long samples and, after them, the short ones.
            rope: Geometry of the model as it is.
            short: Number of short samples.
            share: Highest change of the perplexity of each, such as 0.01.
        """
        count = len(objective.tokens)
        batches = [[(Scaling.identity(rope), index)] for index in range(count - short, count)]
        losses = {index: answer.loss for index, (answer,) in objective.evaluate(batches, gradient=False)}
        return cls(objective, [losses[index] + math.log1p(share) for index in range(short)], share)

    @property
    def tokens(self) -> Sequence[int]:
        """Length of each sample in tokens."""
        return self.objective.tokens

    @property
    def context_tokens(self) -> Sequence[int]:
        """Cost of a pass over each sample in a frozen context; empty without contexts."""
        return context_tokens(self.objective)

    @property
    def long(self) -> int:
        """Number of long samples."""
        return len(self.tokens) - len(self.limits)

    def evaluate(self, batches: Sequence[Batch], *, gradient: bool) -> Iterator[tuple[int, list[CandidateLoss]]]:
        """Yield the index of each batch and its losses, those of short samples as penalties."""
        return self._penalised(batches, self.objective.evaluate(batches, gradient=gradient))

    def evaluate_in_context(
        self, batches: Sequence[Batch], *, gradient: bool, reference: Scaling
    ) -> Iterator[tuple[int, list[CandidateLoss]]]:
        """Yield the same in frozen contexts of a reference."""
        assert isinstance(self.objective, ContextObjective)
        answers = self.objective.evaluate_in_context(batches, gradient=gradient, reference=reference)
        return self._penalised(batches, answers)

    def release_contexts(self) -> None:
        """Free the memory of the frozen contexts that are kept."""
        release_contexts(self.objective)

    def _penalised(
        self, batches: Sequence[Batch], answers: Iterator[tuple[int, list[CandidateLoss]]]
    ) -> Iterator[tuple[int, list[CandidateLoss]]]:
        for index, losses in answers:
            pairs = zip(batches[index], losses, strict=True)
            yield index, [self._penalty(sample, loss) for (_, sample), loss in pairs]

    def _penalty(self, sample: int, loss: CandidateLoss) -> CandidateLoss:
        """Return the loss of a sample, weighted so that the mean over all is that of the long ones plus penalties."""
        short, above = sample - self.long, 0.0
        weight = len(self.tokens) / self.long
        if short >= 0:
            above = self.limits[short]
            weight = len(self.tokens) / len(self.limits) * (PENALTY if loss.loss > above else REWARD)
        gradient = None if loss.gradient is None else tuple(weight * value for value in loss.gradient)
        return CandidateLoss(weight * (loss.loss - above), gradient)

    def losses(self, by_sample: Mapping[int, float]) -> tuple[float, float]:
        """Return the mean loss of the long samples, and what the short ones lose against the original on average.

        Args:
            by_sample: Losses of this objective by sample, in nats.
        """
        long = np.mean([by_sample[i] for i in range(self.long)]) * self.long / len(self.tokens)
        scaled = np.array([by_sample[i] for i in range(self.long, len(self.tokens))])
        scaled *= len(self.limits) / len(self.tokens)
        above = np.mean(scaled / np.where(scaled > 0, PENALTY, REWARD))
        return float(long), float(above + math.log1p(self.share))


def short_texts(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, rope: Rope, length: int, count: int
) -> list[WeightedText]:
    """Return texts of L0 tokens from the documents of a search, of which the last tokens count.

    Args:
        documents: Documents in the order in which they are tried.
        tokenizer: Tokenizer of the model.
        rope: Geometry of the model.
        length: Target length of the search in tokens.
        count: Number of documents. Each gives as many texts as lie in it, up to `SHORT_TOKENS` tokens in all.

    Raises:
        LongRopeError: If the target length is not above L0.
    """
    original = rope.original_length
    if length <= original:
        raise LongRopeError(f"keep_short: length = {length} is not above L0 = {original}. Give a longer one.")
    each = max(1, min(length, SHORT_TOKENS // count) // original)
    drawn = draw_tokens(documents, tokenizer, length=each * original, count=count)
    return perplexity_texts(drawn.tokens.reshape(-1, original), tail=min(TAIL, original - 1))


def kept_short(folder: Path, objectives: SearchObjectives, winner: Scaling) -> dict[str, Any]:
    """Return what the winner of a search costs short texts, and the trade-off between long and short.

    Args:
        folder: Folder of the search.
        objectives: Objectives of the search, both `KeepShort`.
        winner: Factors that the search ended with.

    Returns:
        ``limit`` and ``change``: the highest change of short perplexity, and that of the winner on held-out documents
        (0.01 is 1%). ``trade_off``: candidates that no other one beats both in ``long``, the loss of the long samples
        in nats, and in ``short``, the change of short perplexity; on the search documents, by rising ``short``.
    """
    search, held_out = objectives.search, objectives.held_out
    assert isinstance(search, KeepShort)
    assert isinstance(held_out, KeepShort)
    chosen = {name: getattr(winner, name) for name in ("attention_factor", "start_tokens")}
    chosen["factors"] = list(winner.factors)
    change = next(
        point["short"] for point in _points(folder / "held-out.jsonl", held_out) if chosen.items() <= point.items()
    )
    points = [point for path in sorted(folder.glob("search-*.jsonl")) for point in _points(path, search)]
    front: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda point: (point["short"], point["long"])):
        if not front or point["long"] < front[-1]["long"]:
            front.append(point)
    return {"limit": held_out.share, "change": change, "trade_off": front}


def _points(journal: Path, objective: KeepShort) -> list[dict[str, Any]]:
    """Return the losses of all candidates that a journal has on every sample."""
    by_candidate: dict[tuple[float, ...], dict[int, float]] = {}
    for text in journal.read_text(encoding="utf-8").splitlines()[1:]:
        line = json.loads(text)
        if "loss" in line and "context" not in line and "gradient" not in line:
            candidate = (*line["factors"], line["attention_factor"], line["start_tokens"])
            by_candidate.setdefault(candidate, {})[line["item"]] = math.inf if line["loss"] is None else line["loss"]
    points = []
    for candidate, losses in by_candidate.items():
        if len(losses) == len(objective.tokens):
            long, change = objective.losses(losses)
            *factors, attention_factor, start_tokens = candidate
            point = {"factors": factors, "attention_factor": attention_factor, "start_tokens": start_tokens}
            points.append({"long": long, "short": math.expm1(change), **point})
    return points
