"""Weighted texts: what a search can minimise, as token ids and a weight for the loss of every token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from longrope.checks import whole
from longrope.data.key_value_lines import make_key_value_text
from longrope.data.token_sequences import TokenSequences, as_array, as_sequences
from longrope.errors import LongRopeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEEDLES = 8


@dataclass(frozen=True, eq=False)
class WeightedText:
    """A text whose loss is the sum over its tokens of weight times negative log-likelihood.

    Args:
        tokens: Token ids, int64 ``(length,)``.
        weights: Weights of the losses of tokens 1, 2 …, float64 ``(length - 1,)``; their sum is 1 for a mean.
        positions: Position ids of the tokens, int64 ``(length,)``, strictly increasing; 0, 1, 2 … if None.

    Raises:
        LongRopeError: If the weights do not fit the tokens, or all are 0.
    """

    tokens: np.ndarray
    weights: np.ndarray
    positions: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", as_sequences([self.tokens], field="tokens")[0])
        object.__setattr__(self, "weights", as_array(self.weights).astype(np.float64, copy=False))
        if self.positions is not None:
            object.__setattr__(self, "positions", as_sequences([self.positions], field="positions")[0])
        if len(self.weights) != len(self.tokens) - 1 or not np.isfinite(self.weights).all() or not self.weights.any():
            raise LongRopeError(
                f"weights of {len(self.weights)} losses: a text of {len(self.tokens)} tokens needs "
                f"{len(self.tokens) - 1} finite weights, not all 0. Give one weight for each token but the first."
            )

    @property
    def reach(self) -> int:
        """The largest position + 1."""
        return len(self.tokens) if self.positions is None else int(self.positions[-1]) + 1

    @property
    def skip(self) -> int:
        """The number of losses before the first one that counts."""
        return int(np.flatnonzero(self.weights)[0])


def perplexity_texts(tokens: TokenSequences, *, tail: int | None = None) -> list[WeightedText]:
    """Return documents weighted so that the loss of each is its mean loss, or that of its last tokens.

    Args:
        tokens: Token ids of the documents: lists, arrays or tensors, or one ``(documents, length)``.
        tail: Number of tokens at the end that count; all if None.

    Raises:
        LongRopeError: If ``tail`` is not between 1 and the length less 1.
    """
    texts: list[WeightedText] = []
    for document in as_sequences(tokens, field="tokens"):
        scored = len(document) - 1
        if tail is not None and not 1 <= tail <= scored:
            raise LongRopeError(f"tail = {tail}: not between 1 and {scored}, the length less 1. Take a shorter tail.")
        weights = np.zeros(scored)
        weights[scored - (tail or scored) :] = 1 / (tail or scored)
        texts.append(WeightedText(document, weights))
    return texts


def needle_texts(
    tokens: TokenSequences,
    tokenizer: PreTrainedTokenizerBase,
    *,
    needles: int | None = None,
    each: int = 1,
    seed: int = 0,
) -> list[WeightedText]:
    """Return texts for needle perplexity (LongRoPE2 section 3.2): the loss of answers to needles in real documents.

    Every text has the length of its document. Its needles lie at random places and are all repeated at the end, where
    only the tokens of the answers count.

    Args:
        tokens: Token ids of the documents: lists, arrays or tensors, or one ``(documents, length)``.
        tokenizer: Tokenizer of the model.
        needles: Number of lines to plant in a text; `NEEDLES` if None, in short documents one for every 64 tokens.
        each: Number of texts to make from each document.
        seed: Seed of the needles and their places.

    Raises:
        LongRopeError: If ``needles`` is below 1, or the documents are too short for them.
    """
    rng = np.random.default_rng(seed)
    texts: list[WeightedText] = []
    for document in as_sequences(tokens, field="tokens"):
        default = max(1, min(NEEDLES, len(document) // 64))
        count = default if needles is None else whole("needles", needles, 1)
        for _ in range(each):
            text = make_key_value_text(document, tokenizer, rng=rng, length=len(document), needles=count, queries=count)
            answers = text.answers[1:].astype(float)
            texts.append(WeightedText(text.tokens, answers / answers.sum()))
    return texts


def mix_texts(mixture: Sequence[tuple[float, Sequence[WeightedText]]]) -> list[WeightedText]:
    """Return all texts, reweighted so that their mean loss is the weighted sum of the mean losses of the sets.

    This mixes perplexity with needles, or several lengths for one set of factors.

    Args:
        mixture: Pairs of a weight and a set of texts.

    Raises:
        LongRopeError: If a weight is not above 0, or a set is empty.
    """
    count = sum(len(texts) for _, texts in mixture)
    for weight, texts in mixture:
        if not weight > 0 or not texts:
            raise LongRopeError(
                f"mixture = {weight} of {len(texts)} texts: the weight must be above 0 and the set not empty. "
                "Leave this set out."
            )
    return [
        replace(text, weights=text.weights * (weight * count / len(texts)))
        for weight, texts in mixture
        for text in texts
    ]


def with_position_jumps(texts: Sequence[WeightedText], length: int, *, seed: int = 0) -> list[WeightedText]:
    """Return the same texts with positions up to ``length``, each with one jump (PoSE, arXiv 2309.10400).

    The jumps lie at random places and grow evenly from text to text, so that the last one reaches ``length``. A search
    for a long context then needs short documents and short forward passes only. It does not see how attention thins
    out over many tokens.

    Args:
        texts: Texts without positions, shorter than ``length``.
        length: Target length in tokens.
        seed: Seed of the places of the jumps.
    """
    rng = np.random.default_rng(seed)
    jumping: list[WeightedText] = []
    for number, text in enumerate(texts, start=1):
        positions = np.arange(len(text.tokens))
        positions[int(rng.integers(1, len(positions))) :] += (length - len(positions)) * number // len(texts)
        jumping.append(replace(text, positions=positions))
    return jumping
