"""The geometry of a model's rotary position embedding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from longrope.checks import positive, positives, whole
from longrope.errors import LongRopeError

FULL = "full_attention"  # transformers' name of the layers that are extended, where a model has other types too
FULL_NAMES = (FULL, "hybrid", "compress", "indexed_attention")  # of their rope, as Zaya, DeepSeek-V4 and Dots 3 call it


def full_attention_name(parameters: Iterable[str]) -> str | None:
    """Return the name of the full-attention layers' rope among those of all layer types; None if there is one rope."""
    names = set(parameters)
    return next((name for name in FULL_NAMES if name in names), None)


def full_attention_fields(parameters: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the rope fields of the full-attention layers, from a config's ``rope_parameters`` or ``rope_scaling``.

    Some configs hold one set of fields for each layer type; the others hold one for all layers, which is returned.

    >>> full_attention_fields({"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}})
    {'rope_theta': 1000000.0}
    """
    fields = parameters or {}
    layer_fields = fields.get(full_attention_name(fields) or FULL)
    return layer_fields if isinstance(layer_fields, Mapping) else fields


def rope_type_of(model: Any) -> str:
    """Return the ``rope_type`` of the full-attention layers of a transformers model; ``default`` without one."""
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None)
    return str(full_attention_fields(parameters).get("rope_type", "default"))


def text_fields(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of a config's text model: the config itself, or its ``text_config`` if it reads images too.

    The model type stays that of the whole model, which decides what an engine does.
    """
    text = config.get("text_config")
    return {**text, "model_type": config.get("model_type")} if isinstance(text, Mapping) else config


@dataclass(frozen=True)
class Rope:
    """The geometry of a model's rotary position embedding.

    Args:
        dim: Rotated dimensions per head, even; below ``head_dim`` for partial rotary models.
        base: ``rope_theta``.
        original_length: L0, the length in tokens that the model was trained on.
        factors: λ that the weights are used to, ``(dim // 2,)``: those of an earlier stage, or of a scaling that the
            checkpoint carries; empty for plain RoPE. ``original_length`` is the length that they were made for, and
            factors for this rope multiply these.
        attention_factor: Attention factor of that scaling, which others multiply too.
        short_factors: λ that a ``longrope`` checkpoint uses for shorter texts instead, ``(dim // 2,)``, or empty.
        short_length: Longest text in tokens that ``short_factors`` are for: L0 of that scaling; 0 without them.

    >>> Rope(dim=8, base=10000.0, original_length=256).inv_freq.tolist()
    [1.0, 0.1, 0.01, 0.001]
    """

    dim: int
    base: float
    original_length: int
    factors: tuple[float, ...] = ()
    attention_factor: float = 1.0
    short_factors: tuple[float, ...] = ()
    short_length: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "dim", whole("rope dim", self.dim, 2))
        object.__setattr__(self, "base", positive("rope base", self.base))
        object.__setattr__(self, "original_length", whole("rope original_length", self.original_length, 2))
        if self.dim % 2:
            raise LongRopeError(f"rope dim = {self.dim} must be even: RoPE rotates pairs of dimensions")
        if self.base <= 1:
            raise LongRopeError(f"rope base = {self.base} must be above 1")
        for name in ("factors", "short_factors"):
            factors = positives(f"rope {name}", getattr(self, name))
            object.__setattr__(self, name, factors)
            if len(factors) not in (0, self.dim // 2):
                raise LongRopeError(f"rope {name}: {len(factors)} values for a rope of {self.dim // 2} pairs")
        attention = positive("rope attention_factor", self.attention_factor)
        object.__setattr__(self, "attention_factor", attention)
        object.__setattr__(self, "short_length", whole("rope short_length", self.short_length, 0))
        if bool(self.short_factors) != bool(self.short_length) or (self.short_factors and not self.factors):
            raise LongRopeError("rope short_factors: they come with short_length and factors. Give all three or none.")
        if self.short_length > self.original_length:
            raise LongRopeError(
                f"rope original_length = {self.original_length}: the checkpoint's short factors are for texts of up to "
                f"{self.short_length} tokens. Give at least that length."
            )

    def __repr__(self) -> str:
        """Return the fields that differ from plain RoPE's, with the first and the last of the factors."""
        shown = {
            name: f"({value[0]:.4g} … {value[-1]:.4g})" if isinstance(value, tuple) else repr(value)
            for name, value in self.to_dict().items()
        }
        return f"Rope({', '.join(f'{name}={text}' for name, text in shown.items())})"

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments that make this rope, as JSON values; those of plain RoPE are left out."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}

    @cached_property
    def inv_freq(self) -> np.ndarray:
        """Angular frequencies base^(-2i/dim) in radians per token, float64 ``(dim // 2,)`` (LongRoPE eq. 1)."""
        plain = 1.0 / self.base ** (np.arange(0, self.dim, 2) / self.dim)
        return plain / np.array(self.factors) if self.factors else plain

    @property
    def has_two_sets(self) -> bool:
        """Whether the checkpoint has other factors for texts of up to ``short_length`` tokens."""
        return self.short_factors not in ((), self.factors)

    @property
    def plain(self) -> Rope:
        """The same geometry without factors."""
        return Rope(self.dim, self.base, self.original_length)

    @property
    def wavelengths(self) -> np.ndarray:
        """Tokens per full turn of each pair, float64 ``(dim // 2,)``."""
        return 2 * math.pi / self.inv_freq

    @property
    def critical_pair(self) -> int:
        """The first pair that does not complete a turn within L0 (LongRoPE2 section 3.1); ``dim // 2`` if all do."""
        rising = np.maximum.accumulate(self.wavelengths)  # a carried scaling may let them fall
        return int(np.searchsorted(rising, self.original_length, side="right"))

    def pair_of(self, turns: float) -> float:
        """Return the fractional index of the pair that would complete a number of turns within L0 (YaRN eq. 19)."""
        wavelength = self.original_length / turns
        step = 2 * math.log(self.base) / self.dim
        if not self.factors:
            return math.log(wavelength / (2 * math.pi)) / step
        logs = np.maximum.accumulate(np.log(self.wavelengths))
        target = math.log(wavelength)
        outside = min(target - logs[0], 0) + max(target - logs[-1], 0)  # the pairs continue as a plain rope's do
        return float(np.interp(target, logs, np.arange(self.dim // 2)) + outside / step)

    def band(self, fast: float = 32.0, slow: float = 1.0) -> tuple[int, int]:
        """Return the ends of YaRN's band, rounded outwards to whole pairs (YaRN eq. 19 and its published code).

        Args:
            fast: Turns within L0 of the pair where the band begins.
            slow: Turns within L0 of the pair where it ends.
        """
        return max(math.floor(self.pair_of(fast)), 0), min(math.ceil(self.pair_of(slow)), self.dim - 1)

    def scale(self, length: int) -> float:
        """Return the scale s = length / L0, at least 1.

        Raises:
            LongRopeError: The length is below L0.
        """
        if length < self.original_length:
            raise LongRopeError(
                f"length = {length} is below the model's original length {self.original_length}. Use a longer one."
            )
        return length / self.original_length

    @classmethod
    def of(cls, model_or_config: Any) -> Rope:
        """Return the geometry that a transformers model or its config describes; a `Rope` itself.

        Where the layer types of a model have different ropes, the full-attention layers' is returned. A checkpoint that
        carries a rope scaling has its factors, and as L0 the length that it was made for with them.

        Raises:
            LongRopeError: The config has no RoPE, or one that rescale factors cannot describe.
        """
        if isinstance(model_or_config, Rope):
            return model_or_config
        from longrope.formats.model_rope import rope_of

        return rope_of(model_or_config)
