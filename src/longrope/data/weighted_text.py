"""What a search can minimise: items, each a text of exact length and a weight for every token's loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longrope.checks import whole
from longrope.data.documents import Document
from longrope.data.key_value_lines import make_key_value_text
from longrope.data.split import draw_tokens
from longrope.errors import LongRopeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEEDLES = 8


@dataclass(frozen=True, eq=False)
class WeightedText:
    """A text and what of it counts: its loss is the sum over tokens of weight times negative log-likelihood.

    Args:
        tokens: int64 ``(length,)``.
        weights: of the losses of tokens 1, 2 …, float64 ``(length - 1,)``; they sum to 1 for a mean.
        positions: of the tokens, int64 ``(length,)``, strictly increasing; 0, 1, 2 … if None.
    """

    tokens: np.ndarray
    weights: np.ndarray
    positions: np.ndarray | None = None

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.tokens) - 1 or not np.isfinite(self.weights).all() or not self.weights.any():
            raise LongRopeError(
                f"an item of {len(self.tokens)} tokens needs {len(self.tokens) - 1} finite weights, not all 0"
            )

    @property
    def reach(self) -> int:
        """The largest position + 1."""
        return len(self.tokens) if self.positions is None else int(self.positions[-1]) + 1

    @property
    def skip(self) -> int:
        """How many losses at the beginning do not count."""
        return int(np.flatnonzero(self.weights)[0])


def perplexity_texts(tokens: np.ndarray, *, tail: int | None = None) -> list[WeightedText]:
    """The mean loss of each document, or of its last tokens only.

    Args:
        tokens: ``(documents, length)``.
        tail: how many tokens at the end count; all if None.
    """
    scored = tokens.shape[1] - 1
    if tail is not None and not 1 <= tail <= scored:
        raise LongRopeError(f"tail = {tail} must lie between 1 and {scored}, the length less 1")
    weights = np.zeros(scored)
    weights[scored - (tail or scored) :] = 1 / (tail or scored)
    return [WeightedText(row, weights) for row in tokens]


def needle_texts(
    tokens: np.ndarray, tokenizer: PreTrainedTokenizerBase, *, needles: int | None = None, each: int = 1, seed: int = 0
) -> list[WeightedText]:
    """Needle perplexity (LongRoPE2 section 3.2): the loss of answers whose needles lie in real documents.

    Every item has the length of its document. Its needles lie at seeded random places, all of them are asked for at
    the end, and only the tokens of the answers count.

    Args:
        tokens: ``(documents, length)``.
        tokenizer: of the model.
        needles: lines planted in an item; `NEEDLES` if None, in short documents one for every 64 tokens.
        each: items made from each document.
        seed: of needles and places.

    Raises:
        LongRopeError: if ``needles`` is below 1.
    """
    rng, items = np.random.default_rng(seed), []
    if needles is None:
        needles = max(1, min(NEEDLES, tokens.shape[1] // 64))
    whole("needles", needles, 1)
    for row in tokens:
        for _ in range(each):
            recall = make_key_value_text(row, tokenizer, rng=rng, length=len(row), needles=needles, asked=needles)
            answers = recall.answers[1:].astype(float)
            items.append(WeightedText(recall.tokens, answers / answers.sum()))
    return items


def mix_texts(parts: Sequence[tuple[float, Sequence[WeightedText]]]) -> list[WeightedText]:
    """Several objectives in one: the weighted sum of the means over each part's items.

    Perplexity with needles, or one set of factors for several lengths.

    Args:
        parts: the weight and the items of each.

    Raises:
        LongRopeError: if a weight is not above 0, or a part is empty.
    """
    count = sum(len(items) for _, items in parts)
    for weight, items in parts:
        if not weight > 0 or not items:
            raise LongRopeError(
                f"a part of weight {weight} with {len(items)} items: use a weight above 0 and some items"
            )
    return [
        replace(item, weights=item.weights * (weight * count / len(items))) for weight, items in parts for item in items
    ]


def skipping(items: Sequence[WeightedText], length: int, *, seed: int = 0) -> list[WeightedText]:
    """The same texts with positions up to ``length``: each has one jump at a seeded place (PoSE, arXiv 2309.10400).

    The jumps grow evenly from item to item, the last one reaches ``length`` itself. So a search for a long context
    needs short documents and short forward passes only. What it does not show is how attention thins out over many
    tokens.

    Args:
        items: without positions, shorter than ``length``.
        length: in tokens.
        seed: of the places.
    """
    rng, found = np.random.default_rng(seed), []
    for i, item in enumerate(items, start=1):
        positions = np.arange(len(item.tokens))
        positions[int(rng.integers(1, len(positions))) :] += (length - len(positions)) * i // len(items)
        found.append(replace(item, positions=positions))
    return found


def search_texts(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    lengths: Sequence[int],
    count: int,
    needles: float = 0.0,
    tail: int | None = None,
    window: int | None = None,
    seed: int = 0,
    cache: Path | None = None,
) -> tuple[list[WeightedText], tuple[str, ...]]:
    """Items of some documents for `longrope search`, and the documents' names.

    Args:
        documents: in the order in which they are tried.
        tokenizer: of the model.
        lengths: in tokens; each counts as much as the others.
        count: documents.
        needles: weight of the needle loss, from 0 (perplexity alone) to 1 (needles alone).
        tail: how many tokens at the end of each length count for perplexity; all if None.
        window: tokens of an item at lengths above it, whose positions then jump; see `skipping`.
        seed: of the needles and jumps.
        cache: a folder that keeps tokens from one call to the next.

    Raises:
        LongRopeError: if there are too few documents that are long enough.
    """
    sizes = {length: min(length, window or length) for length in sorted(set(lengths))}
    drawn = draw_tokens(documents, tokenizer, length=max(sizes.values()), count=count, cache=cache)
    parts: list[tuple[float, list[WeightedText]]] = []
    for length, size in sizes.items():
        tokens, here = drawn.tokens[:, :size], []
        if needles < 1:
            here.append((1 - needles, perplexity_texts(tokens, tail=tail)))
        if needles > 0:
            here.append((needles, needle_texts(tokens, tokenizer, seed=seed)))
        parts += [(weight, skipping(items, length, seed=seed) if size < length else items) for weight, items in here]
    return mix_texts([(weight / len(set(lengths)), items) for weight, items in parts]), drawn.names
