"""Mutation and crossover that keep the factors monotone, in bounded time and with an exact law.

The released LongRoPE code draws a child again until it does not decrease, which may never end. The two functions here
draw from the limiting law of such a rejection loop, in one pass: `mutate` for the chosen genes, `crossover` over all
choices of genes. Genes are whole numbers: λ = 1 + STEP·gene.
"""

from __future__ import annotations

import numpy as np

STEP = 0.01


def mutate(genes: np.ndarray, rng: np.random.Generator, *, probability: float, top: int) -> np.ndarray:
    """Choose each gene with a probability, and draw the chosen ones uniformly among the values that fit.

    A run of k chosen genes between unchosen neighbours a and b is a uniformly drawn non-decreasing sequence of k
    values in a … b, which is k distinct numbers of a … b+k-1 in order, less 0, 1, 2 … (stars and bars).

    Args:
        genes: Whole numbers ``(genes,)``, not decreasing, from 0 to ``top``.
        rng: Source of the random numbers.
        probability: Probability that a gene is chosen.
        top: Largest gene.
    """
    child = genes.copy()
    chosen = np.flatnonzero(rng.random(len(genes)) < probability)
    for run in np.split(chosen, np.flatnonzero(np.diff(chosen) > 1) + 1):
        if not len(run):
            continue
        low = genes[run[0] - 1] if run[0] > 0 else 0
        high = genes[run[-1] + 1] if run[-1] + 1 < len(genes) else top
        draws = rng.choice(high - low + len(run), size=len(run), replace=False)
        child[run] = low + np.sort(draws) - np.arange(len(run))
    return child


def crossover(a: np.ndarray, b: np.ndarray, rng: np.random.Generator, *, probability: float) -> np.ndarray:
    """Take each gene from b with a probability, else from a, given that the child does not decrease.

    The parents of the genes are then a Markov chain. ``tail[i, x]`` is the probability that the genes after i can be
    chosen well if gene i is from parent x, and one pass draws from left to right.

    Args:
        a: Genes of one parent, ``(genes,)``, not decreasing.
        b: Genes of the other parent, ``(genes,)``, not decreasing.
        rng: Source of the random numbers.
        probability: Probability that a gene is b's.
    """
    parents, weights = np.stack([a, b], axis=1), np.array([1 - probability, probability])
    tail = np.ones((len(a), 2))
    for i in range(len(a) - 2, -1, -1):
        fits = parents[i][:, None] <= parents[i + 1][None, :]
        tail[i] = (fits * weights * tail[i + 1]).sum(axis=1)
        tail[i] /= tail[i].max()
    child = np.empty_like(a)
    for i, draw in enumerate(rng.random(len(a))):
        odds = weights * tail[i] * (parents[i] >= (child[i - 1] if i else 0))
        child[i] = parents[i, int(draw * odds.sum() >= odds[0])]
    return child
