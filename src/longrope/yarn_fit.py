"""Factors as a YaRN: its parameters if they are one, and the parameters of the nearest one.

All bands here begin and end at whole pairs, as YaRN's do by default. Engines disagree about others: transformers, vLLM
and SGLang read ``truncate: false`` in a config, mlx-lm, TensorRT-LLM and llama.cpp do not.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.schemes import yarn

SAME = 1e-8  # largest difference of two log factors that counts as none
STEPS = 60  # of Newton's method
INSIDE = 1 / 3  # part of a pair by which betas lie inside their band, so that no rounding moves its ends


def yarn_of(rope: Rope, scaling: Scaling) -> dict[str, Any] | None:
    """Return the parameters with which `yarn` gives a scaling's factors; None if they are not a YaRN.

    A YaRN's band begins at its last pair with λ = 1, and u = 1 - 1/λ rises in a straight line up to 1 - 1/factor. If
    it rises up to the last pair, the end of the band lies there or beyond, and the first end whose factor reaches s is
    taken.

    Args:
        rope: Geometry of the model.
        scaling: Factors with their length.

    Returns:
        ``factor``, ``beta_fast`` and ``beta_slow``; None also if the factor is below s, for which engines would limit
        the length, and for a rope that carries factors, whose product is not a YaRN.
    """
    if rope.factors or scaling.start_tokens or scaling.length is None:
        return None
    lam = np.asarray(scaling.factors)
    scale, changed = rope.scale(scaling.length), np.flatnonzero(lam > 1 + SAME)
    if not len(changed) or changed[0] == 0:
        return None
    first, rise = int(changed[0]) - 1, 1 - 1 / lam[changed[0]]
    full = np.flatnonzero(lam >= lam[-1] * (1 - SAME))
    lasts = range(int(full[0]), rope.dim) if full[0] == len(lam) - 1 else [int(full[0])]
    for last in lasts:
        end = 1 - rise * (last - first)
        factor = lam[-1] if last < len(lam) else 1 / end if end > 0 else math.inf
        if scale * (1 - SAME) <= factor < math.inf:
            parameters: dict[str, Any] = {"factor": _rounded(float(factor)), **betas(rope, first, last)}
            candidate = yarn(rope, scaling.length, **parameters)
            return parameters if np.abs(np.log(candidate.factors) - np.log(lam)).max() < SAME else None
    return None


def betas(rope: Rope, first: int, last: int) -> dict[str, Any]:
    """Return turns within L0 that give a band of whole pairs: 32 and 1 if they do, else others of six digits.

    Args:
        rope: Geometry of the model, without factors.
        first: Last pair that is unchanged.
        last: First pair that is interpolated fully.
    """
    fast, slow = turns(rope, first + INSIDE), turns(rope, last - INSIDE)
    usual_first, usual_last = rope.band()
    return {
        "beta_fast": 32.0 if first == usual_first and slow < 32 else float(f"{fast:.6g}"),
        "beta_slow": 1.0 if last == usual_last and fast > 1 else float(f"{slow:.6g}"),
    }


def turns(rope: Rope, pair: float) -> float:
    """Return the turns within L0 of a pair with a fractional index, the inverse of `Rope.pair_of`."""
    return rope.original_length / (2 * math.pi * rope.base ** (2 * pair / rope.dim))


def nearest_yarn(
    rope: Rope,
    log_factors: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    least: float = 1.0,
    most: float = math.inf,
) -> tuple[int, int, float]:
    """Return the band and the factor of the YaRN with the least squares of weighted distances in log factors.

    Every band of whole pairs is tried, each with the factor that Newton's method finds for it.

    Args:
        rope: Geometry of the model.
        log_factors: Log factors to come near, ``(dim // 2,)``.
        weights: Weight of each squared distance, ``(dim // 2,)``; None for equal ones.
        least: Least factor.
        most: Largest factor.

    Returns:
        The band's first pair, its last pair, and the factor.
    """
    pairs = rope.dim // 2
    weights = np.ones(pairs) if weights is None else weights
    firsts, lasts = np.meshgrid(np.arange(max(pairs - 1, 1)), np.arange(1, rope.dim), indexing="ij")
    bands = np.stack([firsts, lasts], axis=-1)[lasts > firsts]
    ramp = np.clip((np.arange(pairs) - bands[:, :1]) / (bands[:, 1:] - bands[:, :1]), 0, 1)
    top = np.full((len(bands), 1), max(log_factors.max(), math.log(least)))
    for _ in range(STEPS):
        interpolated = ramp * np.exp(-top)
        frequency = interpolated + (1 - ramp)
        slope, rest = interpolated / frequency, log_factors + np.log(frequency)
        move = (weights * slope * rest).sum(1) / np.maximum((weights * slope**2).sum(1), 1e-12)
        top = np.clip(top + np.clip(move[:, None], -0.5, 0.5), math.log(least), math.log(most))
    distances = (weights * (log_factors + np.log(ramp * np.exp(-top) + (1 - ramp))) ** 2).sum(1)
    best = int(distances.argmin())
    return int(bands[best, 0]), int(bands[best, 1]), float(np.exp(top[best, 0]))


def fit_yarn(rope: Rope, scaling: Scaling) -> tuple[Scaling, dict[str, Any]]:
    """Return the YaRN nearest to a scaling, with its attention factor, and the YaRN's parameters.

    The distances in log factors are least squares, where each pair counts by the part of a turn that it makes within
    the length, at most 1: pairs that hardly turn hardly matter. The factor is at least s, because engines take L0 times
    the factor for the longest sequence.

    Args:
        rope: Geometry of the model.
        scaling: Factors with their length.

    Raises:
        LongRopeError: The rope carries factors or is another one, or the scaling has start tokens or no length.
    """
    if rope.factors:
        raise LongRopeError(
            "rope.factors: the checkpoint carries a rope scaling, which the factors multiply. A YaRN cannot express "
            "products. Fit the factors of a plain checkpoint."
        )
    if scaling.start_tokens:
        raise LongRopeError(f"start_tokens = {scaling.start_tokens}: a YaRN has none. Search without.")
    if scaling.length is None:
        raise LongRopeError("length = None: a YaRN is for a target length in tokens. Set the scaling's length.")
    log_factors = np.log(rope.inv_freq / scaling.inv_freq(rope))  # refuses another rope's
    weights = np.minimum(scaling.inv_freq(rope) * scaling.length / (2 * math.pi), 1) ** 2
    first, last, factor = nearest_yarn(rope, log_factors, weights=weights, least=rope.scale(scaling.length))
    parameters: dict[str, Any] = {"factor": _rounded(factor), **betas(rope, first, last)}
    fitted = yarn(rope, scaling.length, **parameters)
    return replace(fitted, attention_factor=scaling.attention_factor), parameters


def distances(rope: Rope, scaling: Scaling, other: Scaling) -> dict[str, float]:
    """Return the largest and the root mean square difference of two scalings, in log factors and in turns at L.

    Args:
        rope: Geometry of the model.
        scaling: Factors with their length L.
        other: Factors to compare with.
    """
    logs = np.abs(np.log(scaling.factors) - np.log(other.factors))
    frequencies = np.abs(scaling.inv_freq(rope) - other.inv_freq(rope))
    at_length = frequencies * (scaling.length or rope.original_length) / (2 * math.pi)
    return {
        "largest_log": float(logs.max()),
        "rms_log": _root_mean_square(logs),
        "largest_turns": float(at_length.max()),
        "rms_turns": _root_mean_square(at_length),
    }


def _rounded(factor: float) -> float:
    """Return a factor with ten significant digits, without the noise of its computation."""
    return float(f"{factor:.10g}")


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
