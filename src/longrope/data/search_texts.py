"""The texts of a search: documents, with questions at their end if answers count too, at one or more lengths."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longrope.data.documents import Document
from longrope.data.questions import ASKED_KINDS, TEXT, ask_questions
from longrope.data.split import draw_tokens
from longrope.data.weighted_text import WeightedText, mix_texts, perplexity_texts, with_position_jumps
from longrope.errors import LongRopeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class SearchTextSpec:
    """The objective of a search over documents.

    Args:
        lengths: Lengths in tokens; each counts as much as the others.
        count: Number of documents.
        needles: Weight of the answers to questions at the end of the documents, from 0 (none) to 1 (answers alone).
        tail: Number of tokens at the end of each length that count for perplexity; all if None.
        window: Tokens of a text at lengths above it, whose positions then jump (`with_position_jumps`).
        seed: Seed of the questions and jumps.
        kinds: Kinds of questions, some of `longrope.data.questions.KINDS`.
    """

    lengths: Sequence[int]
    count: int
    needles: float = 0.0
    tail: int | None = None
    window: int | None = None
    seed: int = 0
    kinds: Collection[str] = ASKED_KINDS


def search_texts(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    spec: SearchTextSpec,
    *,
    cache: Path | None = None,
) -> tuple[list[WeightedText], tuple[str, ...]]:
    """Return the weighted texts that a search minimises, and the names of their documents.

    Args:
        documents: Documents in the order in which they are tried.
        tokenizer: Tokenizer of the model.
        spec: Lengths, number of documents and weights.
        cache: Folder that keeps tokens from one call to the next.

    Raises:
        LongRopeError: If too few documents are long enough.
    """
    lengths = sorted(set(spec.lengths))
    sizes = {length: min(length, spec.window or length) for length in lengths}
    drawn = draw_tokens(documents, tokenizer, length=max(sizes.values()), count=spec.count, cache=cache)
    mixture: list[tuple[float, list[WeightedText]]] = []
    for length, size in sizes.items():
        tokens = drawn.tokens[:, :size]
        if spec.needles == 0:
            texts = perplexity_texts(tokens, tail=spec.tail)
        else:
            share, kinds = spec.needles, spec.kinds
            texts = question_texts(tokens, tokenizer, share=share, tail=spec.tail, seed=spec.seed, kinds=kinds)
        jumping = with_position_jumps(texts, length, seed=spec.seed) if size < length else texts
        mixture.append((1 / len(lengths), jumping))
    return mix_texts(mixture), drawn.names


def question_texts(
    tokens: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    *,
    share: float,
    tail: int | None = None,
    seed: int = 0,
    kinds: Collection[str] = ASKED_KINDS,
) -> list[WeightedText]:
    """Return documents with questions at their end, weighted for perplexity and answers at once.

    The loss of each is the mean loss of the document's tokens, with weight 1 - share, and that of the answers, with
    weight ``share``; each kind of question has the same weight.

    Args:
        tokens: Token ids ``(documents, length)``.
        tokenizer: Tokenizer of the model.
        share: Weight of the answers, above 0 and at most 1.
        tail: Number of the document's tokens before the questions that count; all if None.
        seed: Seed of the questions.
        kinds: Kinds of questions, some of `longrope.data.questions.KINDS`.

    Raises:
        LongRopeError: If a document is too short for the questions or the tail.
    """
    rng, texts = np.random.default_rng(seed), []
    for document in tokens:
        questioned, labels = ask_questions(document, tokenizer, rng, kinds)
        scored = labels[1:]
        answers = [scored == label for label in np.unique(scored) if label > TEXT]
        weights = sum((share / len(answers) * mask / mask.sum() for mask in answers), np.zeros(len(scored)))
        text = np.flatnonzero(scored == TEXT)
        if tail is not None and tail > len(text):
            raise LongRopeError(f"tail = {tail}: {len(text)} tokens lie before the questions. Take a shorter tail.")
        text = text[-(tail or len(text)) :]
        weights[text] += (1 - share) / len(text)
        texts.append(WeightedText(questioned, weights))
    return texts
