"""Modifiers, which change the factors of any scheme: whole wavelengths, and slow pairs that stand still."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from longrope.rope import Rope
from longrope.scaling import Scaling

STILL = 1e12  # factor of a pair that does not rotate: at 2^24 tokens it has turned by less than 2e-5


def resonance(rope: Rope | Any, scaling: Scaling) -> Scaling:
    """Round the wavelengths of any factors to integer tokens, so that a pair repeats exactly (Resonance RoPE).

    λ_i' = round(λ_i·wavelength_i) / wavelength_i, at least 2 tokens (Wang et al. 2024, arXiv 2403.00071).

    Args:
        rope: Geometry of the model, or the model or its config.
        scaling: Factors to round.

    Raises:
        LongRopeError: The factors belong to another rope.

    >>> rope = Rope(dim=4, base=100.0, original_length=64)
    >>> (resonance(rope, Scaling([2.0, 2.0])).factors * rope.wavelengths).round(9).tolist()
    [13.0, 126.0]
    """
    rope = Rope.of(rope)
    wavelengths = np.maximum(np.round(2 * math.pi / scaling.inv_freq(rope)), 2)
    return _modified(scaling, wavelengths / rope.wavelengths, "resonance")


def cope(rope: Rope | Any, scaling: Scaling) -> Scaling:
    """Clip the slow pairs of any factors softly, so that the slowest stands still (CoPE, Li et al. 2026).

    The frequency of pair j = 0 … c-1 of the last c is multiplied by (1 + cos(πj/(c-1)))/2 (arXiv 2602.05258). The
    paper has c = 20 for Llama-3-8B, where 29 pairs turn less than once within L0. Here c is the same share of them,
    20/29, rounded. With fewer than two such pairs nothing changes.

    The last pair's factor would be infinite, which no config can hold. It is `STILL` times that of plain RoPE instead,
    so that its angle differs from 0 by less than 2e-5 up to 2^24 tokens.

    Args:
        rope: Geometry of the model, or the model or its config.
        scaling: Factors to clip.

    Raises:
        LongRopeError: The factors belong to another rope.

    >>> rope = Rope(dim=128, base=500000.0, original_length=8192)
    >>> factors = cope(rope, Scaling([1.0] * 64)).factors
    >>> factors[44:46], factors[-1]
    ((1.0, 1.0068...), 1000000000000.0)
    """
    rope = Rope.of(rope)
    frequencies = scaling.inv_freq(rope)
    clipped = round(20 / 29 * (rope.dim // 2 - rope.critical_pair))
    if clipped < 2:
        return _modified(scaling, np.array(scaling.factors), "cope")
    weights = np.ones(rope.dim // 2)
    weights[-clipped:] = (1 + np.cos(np.pi * np.arange(clipped) / (clipped - 1))) / 2
    slowest = np.minimum(rope.plain.inv_freq / STILL, frequencies)  # a pair that stands still stays as it is
    return _modified(scaling, rope.inv_freq / np.maximum(weights * frequencies, slowest), "cope")


MODIFIERS: dict[str, Callable[[Rope, Scaling], Scaling]] = {"resonance": resonance, "cope": cope}


def _modified(scaling: Scaling, factors: np.ndarray, name: str) -> Scaling:
    """Return a scaling with other factors, and the modifier's name once at the end of its scheme."""
    return replace(scaling, factors=factors.tolist(), scheme=f"{scaling.scheme.removesuffix(f'+{name}')}+{name}")
