"""Closed forms whose log factor rises from 0 to ln s between the pairs of 32 turns and of one turn within L0."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from longrope.rope import Rope
from longrope.scaling import Scaling


def mrrope_uni(rope: Rope, length: int) -> Scaling:
    """Return MrRoPE-Uni: every radix of the band grows alike, m = q/n (Tian et al. 2026, arXiv 2601.22181).

    λ_i = s^m(q), attention 0.1·ln s + 1; `rise_in_band` explains q and n.
    """
    return rise_in_band(rope, length, lambda q, n: q / n, scheme="mrrope_uni")


def mrrope_pro(rope: Rope, length: int) -> Scaling:
    """Return MrRoPE-Pro: the radices of slow pairs grow more, m = q(q+1)/(n(n+1)) (Tian et al. 2026).

    λ_i = s^m(q), attention 0.1·ln s + 1; `rise_in_band` explains q and n.
    """
    return rise_in_band(rope, length, lambda q, n: q * (q + 1) / (n * (n + 1)), scheme="mrrope_pro")


def bm(rope: Rope, length: int) -> Scaling:
    """Return the boundary-matched variant of MrRoPE: m = q(q+1)(3n+2-2q)/(n(n+1)(n+2)).

    The growth of the radices changes least from pair to pair if it is 0 just outside both ends of the band.
    λ_i = s^m(q), attention 0.1·ln s + 1; `rise_in_band` explains q and n.
    """
    return rise_in_band(
        rope, length, lambda q, n: q * (q + 1) * (3 * n + 2 - 2 * q) / (n * (n + 1) * (n + 2)), scheme="bm"
    )


def tailspline(rope: Rope, length: int) -> Scaling:
    """Return TailSpline, a variant of MrRoPE: m = q(3n²+3n+1-q²)/(n(n+1)(2n+1)).

    The growth of the radices changes least from pair to pair if it is 0 just outside the slow end of the band, and
    free at the fast end. λ_i = s^m(q), attention 0.1·ln s + 1; `rise_in_band` explains q and n.
    """
    return rise_in_band(
        rope, length, lambda q, n: q * (3 * n**2 + 3 * n + 1 - q**2) / (n * (n + 1) * (2 * n + 1)), scheme="tailspline"
    )


def rise_in_band(rope: Rope, length: int, exponent: Callable[[np.ndarray, int], np.ndarray], *, scheme: str) -> Scaling:
    """Return λ_i = s^m(q) with q = i - l, clipped to 0 … n, and n = h - l.

    Pair l is the last with more than 32 turns within L0, and pair h the first with fewer than one. They are the ends of
    YaRN's band, rounded down and up. Where no pair turns so often or so rarely, the band ends where the pairs would, as
    YaRN's does.

    Args:
        rope: Geometry of the model.
        length: Target length in tokens.
        exponent: Function m from q ``(dim // 2,)`` and n to the exponents of s, 0 at q = 0 and 1 at q = n.
        scheme: Name of the scheme.
    """
    s = rope.scale(length)
    first, last = rope.band()
    width = max(last - first, 1)
    steps = np.clip(np.arange(rope.dim // 2) - first, 0, width)
    return Scaling(
        (s ** exponent(steps, width)).tolist(),
        attention_factor=0.1 * math.log(s) + 1,
        scheme=scheme,
        length=length,
    )
