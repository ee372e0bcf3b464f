"""The closed-form schemes: each chooses the factors of a `Scaling` from the geometry and the target length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from longrope.checks import positive, to_python
from longrope.errors import LongRopeError, unknown
from longrope.mixed_radix import bm, mrrope_pro, mrrope_uni, tailspline
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.scheme_modifiers import MODIFIERS
from longrope.units import token_count


def attention_factor(policy: str | float, rope: Rope | Any, length: int | str) -> float:
    """Return the number that multiplies cos and sin at a target length.

    Args:
        policy: ``"su"`` for sqrt(1 + ln s / ln L0) (LongRoPE's published models), ``"yarn"`` for 0.1·ln s + 1
            (YaRN eq. 22), ``"none"`` for 1, or a number, also as text.
        rope: Geometry of the model, or the model or its config.
        length: Target length in tokens, such as 32768 or ``"32k"``.

    Raises:
        LongRopeError: The policy is unknown, or the length is below L0.

    >>> attention_factor("yarn", Rope(dim=8, base=1e4, original_length=256), 2048).__round__(4)
    1.2079
    """
    rope, policy = Rope.of(rope), to_python(policy)
    log_s = math.log(rope.scale(token_count("length", length, 1)))
    if policy == "su":
        return math.sqrt(1 + log_s / math.log(rope.original_length))
    if policy == "yarn":
        return 0.1 * log_s + 1
    if policy == "none":
        return 1.0
    try:
        return positive("attention", float(policy))
    except (TypeError, ValueError, OverflowError, LongRopeError):  # a whole number may be above any float
        raise LongRopeError(f"attention = {policy!r}: choose su, yarn, none or a number above 0") from None


def linear(rope: Rope, length: int) -> Scaling:
    """Return position interpolation (PI): λ_i = s (Chen et al. 2023, arXiv 2306.15595, eq. 4)."""
    return Scaling([rope.scale(length)] * (rope.dim // 2), scheme="pi", length=length)


def ntk(rope: Rope, length: int, *, factor: float | None = None) -> Scaling:
    """Return NTK-aware factors, λ_i = s^(2i/(dim-2)): a larger base interpolates the last pair by s (YaRN eq. 16).

    Args:
        rope: Geometry of the model.
        length: Target length in tokens.
        factor: The scale s (default: ``length / L0``).
    """
    s = rope.scale(length) if factor is None else factor
    return Scaling(_base_growth(rope, s), scheme="ntk", length=length)


def dynamic_ntk(rope: Rope, length: int, *, factor: float | None = None) -> Scaling:
    """Return dynamic NTK for a sequence of ``length`` tokens: NTK-aware with s := factor·length/L0 - (factor - 1).

    Args:
        rope: Geometry of the model.
        length: Length of the sequence in tokens.
        factor: ``factor`` of transformers' ``dynamic`` rope type (default: ``length / L0``).
    """
    scale = rope.scale(length)
    factor = scale if factor is None else factor
    return Scaling(_base_growth(rope, factor * scale - (factor - 1)), scheme="dynamic_ntk", length=length)


def yarn(
    rope: Rope,
    length: int,
    *,
    factor: float | None = None,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
) -> Scaling:
    """Return YaRN, "NTK-by-parts": λ_i = 1/((1-γ_i)/s + γ_i), attention 0.1·ln s + 1 (Peng et al. 2023, eq. 17-22).

    Args:
        rope: Geometry of the model.
        length: Target length in tokens.
        factor: The scale s (default: ``length / L0``).
        beta_fast: Turns within L0 above which a pair is unchanged (γ = 1).
        beta_slow: Turns within L0 below which a pair is interpolated by s (γ = 0).
        truncate: Whether the ramp between them begins and ends at integer pairs.
    """
    s = rope.scale(length) if factor is None else factor
    if truncate:
        low, high = rope.band(beta_fast, beta_slow)
    else:
        low, high = max(rope.pair_of(beta_fast), 0), min(rope.pair_of(beta_slow), rope.dim - 1)
    ramp = (np.arange(rope.dim // 2) - low) / ((high - low) or 0.001)
    gamma = 1 - np.clip(ramp, 0, 1)
    factors = 1 / ((1 - gamma) / s + gamma)
    attention = 0.1 * math.log(max(s, 1)) + 1
    return Scaling(factors.tolist(), attention_factor=attention, scheme="yarn", length=length)


def llama3(
    rope: Rope,
    length: int,
    *,
    factor: float | None = None,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
) -> Scaling:
    """Return Llama 3.1's factors: YaRN's idea with a ramp in turns within L0 (transformers' ``llama3`` rope type).

    Args:
        rope: Geometry of the model.
        length: Target length in tokens.
        factor: The scale s (default: ``length / L0``).
        low_freq_factor: Turns within L0 below which a pair is interpolated by s.
        high_freq_factor: Turns within L0 above which a pair is unchanged; equal to the lower one, the ramp is a step.
    """
    s = rope.scale(length) if factor is None else factor
    turns = rope.original_length / rope.wavelengths
    if high_freq_factor == low_freq_factor:
        gamma = (turns >= low_freq_factor).astype(float)
    else:
        gamma = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    factors = 1 / ((1 - gamma) / s + gamma)
    return Scaling(factors.tolist(), scheme="llama3", length=length)


def ramp(rope: Rope, length: int, *, fast: float = 3.0, slow: float = 0.3, stretch: float = 1.15) -> Scaling:
    """Return a power ramp over the turns within L0: λ_i = (1.15·s)^m_i, m_i from 0 to 1 between 3 turns and 0.3.

    m_i = ln(fast / turns_i) / ln(fast / slow), clipped to [0, 1]. The attention factor is ``su``. It is the best set to
    fine-tune with that we measured (docs/results.md).

    Args:
        rope: Geometry of the model.
        length: Target length in tokens.
        fast: Turns within L0 above which a pair is unchanged.
        slow: Turns within L0 below which a pair is interpolated by ``stretch`` times s.
        stretch: Interpolation of the slow pairs over s.
    """
    s = rope.scale(length)
    if s == 1:
        return Scaling([1.0] * (rope.dim // 2), scheme="ramp", length=length)
    turns = rope.original_length / rope.wavelengths
    exponents = np.clip(np.log(fast / turns) / math.log(fast / slow), 0, 1)
    return Scaling(
        ((stretch * s) ** exponents).tolist(),
        attention_factor=attention_factor("su", rope, length),
        scheme="ramp",
        length=length,
    )


def heuristic(rope: Rope, length: int) -> Scaling:
    """Return factors that need no search: λ_i = 1 + sigmoid(4·(ln r_i / ln s - 1/2))·(s - 1), r_i = wavelength_i / L0.

    They are near 1 for wavelengths well inside L0 and near s beyond the target. The attention factor is ``su``.
    """
    s = rope.scale(length)
    if s == 1:
        return Scaling([1.0] * (rope.dim // 2), scheme="heuristic", length=length)
    ratio = np.log(rope.wavelengths / rope.original_length) / math.log(s)
    factors = 1 + (s - 1) * (1 + np.tanh(2 * (ratio - 0.5))) / 2  # sigmoid(x) = (1 + tanh(x/2)) / 2
    return Scaling(
        factors.tolist(), attention_factor=attention_factor("su", rope, length), scheme="heuristic", length=length
    )


SCHEMES: dict[str, Callable[[Rope, int], Scaling]] = {
    "pi": linear,
    "ntk": ntk,
    "dynamic_ntk": dynamic_ntk,
    "yarn": yarn,
    "llama3": llama3,
    "mrrope_uni": mrrope_uni,
    "mrrope_pro": mrrope_pro,
    "bm": bm,
    "tailspline": tailspline,
    "ramp": ramp,
    "heuristic": heuristic,
}
COMPARED = ("pi", "ntk", "yarn", "heuristic")  # the baselines of searches and evaluations


def is_scheme(name: str) -> bool:
    """Return whether a name is one of `SCHEMES`, alone or with modifiers, each once, as in ``yarn+cope``."""
    base, *modifiers = name.split("+")
    return base in SCHEMES and len(set(modifiers)) == len(modifiers) and set(modifiers) <= set(MODIFIERS)


def canonical(name: str, others: Sequence[str] = ()) -> str:
    """Return a scheme's name as in `SCHEMES`, with its modifiers; ``linear`` is an alias of ``pi``.

    Args:
        name: Name of the scheme.
        others: Names beside those of `SCHEMES` that the error for an unknown name offers.

    Raises:
        LongRopeError: The name is unknown.
    """
    base, *modifiers = str(name).strip().split("+")
    name = "+".join(["pi" if base == "linear" else base, *modifiers])
    if not is_scheme(name):
        suffixes = " or ".join(f"+{modifier}" for modifier in MODIFIERS)
        raise unknown("scheme", name, [*SCHEMES, *others], f", also with {suffixes} after it")
    return name


def scheme(name: str, rope: Rope | Any, length: int | str) -> Scaling:
    """Return the scaling of a scheme of `SCHEMES`; modifiers after the name change it in their order.

    Args:
        name: A key of `SCHEMES`, alone or with modifiers, as in ``yarn+cope``.
        rope: Geometry of the model, or the model or its config.
        length: Target length in tokens, such as 32768 or ``"32k"``.

    Raises:
        LongRopeError: The name is unknown, or ``length`` is not a whole number or below L0.
    """
    base, *modifiers = canonical(name).split("+")
    rope = Rope.of(rope)
    scaling = SCHEMES[base](rope, token_count("length", length, 1))
    for modifier in modifiers:
        scaling = MODIFIERS[modifier](rope, scaling)
    return scaling


def _base_growth(rope: Rope, alpha: float) -> list[float]:
    return (alpha ** (np.arange(0, rope.dim, 2) / max(rope.dim - 2, 1))).tolist()
