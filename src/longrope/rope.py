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
        dim: Rotated dimensions per head, even; below ``head_dim`` for partial rotary models.
        base: ``rope_theta``.
        original_length: L0, the length in tokens that the model was trained on.
        factors: λ of an earlier stage that the weights were fine-tuned with, ``(dim // 2,)``; empty for a plain model.
            ``original_length`` is then that stage's length, and factors for this rope multiply these.

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
        """Return the fractional index of the pair that would complete a number of turns within L0 (YaRN eq. 19)."""
        wavelength = self.original_length / turns
        step = 2 * math.log(self.base) / self.dim
        if not self.factors:
            return math.log(wavelength / (2 * math.pi)) / step
        logs = np.maximum.accumulate(np.log(self.wavelengths))
        target = math.log(wavelength)
        outside = min(target - logs[0], 0) + max(target - logs[-1], 0)  # the pairs continue as a plain rope's do
        return float(np.interp(target, logs, np.arange(self.dim // 2)) + outside / step)

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
        """Return the geometry that a transformers model or its config describes.

        Where the layer types of a model have different ropes, the full-attention layers' is returned.

        Raises:
            LongRopeError: The config has no RoPE, or one that rescale factors cannot describe.
        """
        config = getattr(model_or_config, "config", model_or_config)
        model_type = getattr(config, "model_type", None) or type(config).__name__
        try:
            config = config.get_text_config() if hasattr(config, "get_text_config") else config
            model_type = getattr(config, "model_type", None) or model_type
            return cls(**_geometry(config))
        except LongRopeError as error:
            raise LongRopeError(f"model type {model_type!r}: {error}") from None
        except Exception as error:  # config classes raise errors of their own, as Gemma 4's for its per-layer fields
            reason = " ".join(str(error).split())
            raise LongRopeError(
                f"model type {model_type!r}: its config describes no single rotary embedding ({reason[:200]}). "
                "longrope does not support this model type."
            ) from error


def _geometry(config: Any) -> dict[str, Any]:
    """Return the arguments of `Rope` that a text config's fields give."""
    parameters = full_attention_fields(getattr(config, "rope_parameters", None))
    _check_rotates(config)
    if getattr(config, "qk_rope_head_dim", None):
        raise LongRopeError("multi-head latent attention (MLA) rotates a separate part of each head. Not supported.")
    if not parameters:
        raise LongRopeError("its config has no rotary position embedding (rope_parameters). longrope cannot extend it.")
    if "mrope_section" in parameters or "rope_theta" not in parameters:
        raise LongRopeError(f"rope_parameters = {parameters}: not a plain RoPE. longrope does not support it.")
    head_dim = getattr(config, "head_dim", None)
    if not head_dim:
        hidden_size = whole("hidden_size", getattr(config, "hidden_size", None), 1)
        head_dim = hidden_size // whole("num_attention_heads", getattr(config, "num_attention_heads", None), 1)
    rotary_share = positive("partial_rotary_factor", parameters.get("partial_rotary_factor") or 1.0)
    field = "original_max_position_embeddings"
    original_length = getattr(config, field, None) or parameters.get(field)
    max_position = getattr(config, "max_position_embeddings", None)
    return {
        "dim": int(positive("head_dim", head_dim) * rotary_share),
        "base": positive("rope_theta", parameters["rope_theta"]),
        "original_length": original_length or whole("max_position_embeddings", max_position, 2),
    }


def _check_rotates(config: Any) -> None:
    """Refuse a config that has fields of a RoPE, and another field that turns it off.

    Raises:
        LongRopeError: The model has no RoPE.
    """
    field = "position_embedding_type"
    kind = getattr(config, field, "rope")
    if kind not in ("rope", "rotary"):
        raise LongRopeError(
            f"{field} = {kind!r}: the model has no rotary position embedding. longrope cannot extend it."
        )
    if getattr(config, "alibi", False) is True:
        raise LongRopeError("alibi = True: the model has ALiBi instead of RoPE. longrope cannot extend it.")
