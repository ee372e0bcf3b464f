"""The geometry of a model's rotary position embedding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from longrope.checks import positive, to_python, whole
from longrope.errors import LongRopeError

FULL = "full_attention"  # transformers' name of the layers that are extended, where a model has other types too


def full_attention_fields(parameters: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the rope fields of the full-attention layers, from a config's ``rope_parameters`` or ``rope_scaling``.

    Some configs hold one set of fields for each layer type; the others hold one for all layers, which is returned.

    >>> full_attention_fields({"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}})
    {'rope_theta': 1000000.0}
    """
    fields = parameters or {}
    layer_fields = fields.get(FULL)
    return layer_fields if isinstance(layer_fields, Mapping) else fields


@dataclass(frozen=True)
class Rope:
    """The geometry of a model's rotary position embedding.

    Args:
        dim: rotated dimensions per head (even); below ``head_dim`` for partial rotary models.
        base: ``rope_theta``.
        original_length: L0, the length in tokens that the model was trained on.
        factors: λ that the weights are used to from an earlier stage, ``(dim // 2,)``; empty for a plain model. Then
            ``original_length`` is that stage's, and factors for this rope multiply these.

    >>> Rope(dim=8, base=10000.0, original_length=256).inv_freq.tolist()
    [1.0, 0.1, 0.01, 0.001]
    """

    dim: int
    base: float
    original_length: int
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "dim", whole("rope dim", self.dim, 2))
        object.__setattr__(self, "base", positive("rope base", self.base))
        object.__setattr__(self, "original_length", whole("rope original_length", self.original_length, 2))
        if self.dim % 2:
            raise LongRopeError(f"rope dim = {self.dim} must be even: RoPE rotates pairs of dimensions")
        if self.base <= 1:
            raise LongRopeError(f"rope base = {self.base} must be above 1")
        factors = tuple(positive(f"rope factors[{i}]", value) for i, value in enumerate(to_python(self.factors)))
        object.__setattr__(self, "factors", factors)
        if len(factors) not in (0, self.dim // 2):
            raise LongRopeError(f"rope factors: {len(factors)} values for a rope of {self.dim // 2} pairs")

    @cached_property
    def inv_freq(self) -> np.ndarray:
        """Angular frequencies base^(-2i/dim) in radians per token, float64 ``(dim // 2,)`` (LongRoPE eq. 1)."""
        plain = 1.0 / self.base ** (np.arange(0, self.dim, 2) / self.dim)
        return plain / np.array(self.factors) if self.factors else plain

    @property
    def wavelengths(self) -> np.ndarray:
        """Tokens per full turn of each pair, float64 ``(dim // 2,)``."""
        return 2 * math.pi / self.inv_freq

    @property
    def critical_pair(self) -> int:
        """The first pair that does not complete a turn within L0 (LongRoPE2 section 3.1); ``dim // 2`` if all do."""
        return int(np.searchsorted(self.wavelengths, self.original_length, side="right"))

    def pair_of(self, turns: float) -> float:
        """The place among the pairs, with a fraction, of one that would turn so many times within L0 (YaRN eq. 19)."""
        length, step = self.original_length / turns, 2 * math.log(self.base) / self.dim
        if not self.factors:
            return math.log(length / (2 * math.pi)) / step
        logs, wanted = np.maximum.accumulate(np.log(self.wavelengths)), math.log(length)
        beyond = min(wanted - logs[0], 0) + max(wanted - logs[-1], 0)  # there the pairs go on as a plain rope's
        return float(np.interp(wanted, logs, np.arange(self.dim // 2)) + beyond / step)

    def scale(self, length: int) -> float:
        """The scale s = length / L0, at least 1.

        Raises:
            LongRopeError: if length is below L0.
        """
        if length < self.original_length:
            raise LongRopeError(
                f"length = {length} is below the model's original length {self.original_length}; ask for a longer one"
            )
        return length / self.original_length

    @classmethod
    def of(cls, model_or_config: Any) -> Rope:
        """The geometry that a transformers model or its config describes (full-attention layers if they differ).

        Raises:
            LongRopeError: if the config has no RoPE, or one that these factors cannot describe.
        """
        config = getattr(model_or_config, "config", model_or_config)
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        kind = getattr(config, "model_type", type(config).__name__)
        if getattr(config, "qk_rope_head_dim", None):
            raise LongRopeError(f"model type {kind!r} uses MLA, which splits off its own rotary part: not supported")
        parameters = getattr(config, "rope_parameters", None)
        if not parameters:
            raise LongRopeError(
                f"model type {kind!r} has no rotary position embedding, or none that its config tells of "
                "(rope_parameters): longrope cannot extend it"
            )
        parameters = full_attention_fields(parameters)
        if "mrope_section" in parameters or "rope_theta" not in parameters:
            raise LongRopeError(f"model type {kind!r} uses a rotary embedding of its own ({parameters}): not supported")
        head_dim = getattr(config, "head_dim", None)
        if not head_dim:
            hidden, heads = (getattr(config, name, None) for name in ("hidden_size", "num_attention_heads"))
            head_dim = whole("hidden_size", hidden, 1) // whole("num_attention_heads", heads, 1)
        share = positive("partial_rotary_factor", parameters.get("partial_rotary_factor") or 1.0)
        name = "original_max_position_embeddings"
        original = getattr(config, name, None) or parameters.get(name)
        longest = getattr(config, "max_position_embeddings", None)
        return cls(
            dim=int(positive("head_dim", head_dim) * share),
            base=positive("rope_theta", parameters["rope_theta"]),
            original_length=original or whole("max_position_embeddings", longest, 2),
        )
