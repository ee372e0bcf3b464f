"""The nouns: the geometry of a model's RoPE, one vector of rescale factors, and the pair of them a model ships."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from longrope.errors import LongRopeError

VERSION = 1


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < value < math.inf:
        raise LongRopeError(f"{name} = {value!r} must be a finite number above 0")
    return float(value)


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise LongRopeError(f"{name} = {value!r} must be a whole number, {least} or more")
    return int(value)


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
        object.__setattr__(self, "dim", _whole("rope dim", self.dim, 2))
        object.__setattr__(self, "base", _positive("rope base", self.base))
        object.__setattr__(self, "original_length", _whole("rope original_length", self.original_length, 2))
        if self.dim % 2:
            raise LongRopeError(f"rope dim = {self.dim} must be even: RoPE rotates pairs of dimensions")
        if self.base <= 1:
            raise LongRopeError(f"rope base = {self.base} must be above 1")
        factors = tuple(_positive(f"rope factors[{i}]", value) for i, value in enumerate(self.factors))
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

    def after(self, scaling: Scaling) -> Rope:
        """The geometry of this model once it is fine-tuned with a scaling at the scaling's length.

        Raises:
            LongRopeError: if the scaling has no length, or is another rope's.
        """
        if scaling.length is None:
            raise LongRopeError("length is not set on this scaling; set it to the length it was fine-tuned at")
        scaling.inv_freq(self)  # refuses another rope's
        whole = scaling.times(self.factors or [1.0] * (self.dim // 2))
        return replace(self, original_length=scaling.length, factors=whole.factors)

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
            raise LongRopeError(f"model type {kind!r} has no rotary position embedding: longrope cannot extend it")
        parameters = parameters.get("full_attention", parameters)
        if "mrope_section" in parameters or "rope_theta" not in parameters:
            raise LongRopeError(f"model type {kind!r} uses a rotary embedding of its own ({parameters}): not supported")
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        original = parameters.get("original_max_position_embeddings") or config.max_position_embeddings
        return cls(
            dim=int(head_dim * (parameters.get("partial_rotary_factor") or 1.0)),
            base=float(parameters["rope_theta"]),
            original_length=int(getattr(config, "original_max_position_embeddings", None) or original),
        )


@dataclass(frozen=True)
class Scaling:
    """Rescale factors λ of every rotary pair plus one attention factor: what every RoPE scheme comes down to.

    Args:
        factors: λ, one a pair, ``(dim // 2,)``, finite and above 0; 1 leaves a pair as it was, s interpolates it.
        attention_factor: multiplies cos and sin.
        start_tokens: n̂, positions below it keep the original rotation (LongRoPE eq. 3).
        scheme: the name of what chose the factors.
        length: the length in tokens that they are made for.
        provenance: how they were found (seed, perplexities, …), JSON values only.

    >>> Scaling([1, 2], scheme="mine").inv_freq(Rope(dim=4, base=100.0, original_length=16)).tolist()
    [1.0, 0.05]
    """

    factors: Sequence[float]
    _: KW_ONLY
    attention_factor: float = 1.0
    start_tokens: int = 0
    scheme: str = "custom"
    length: int | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.factors, str) or not isinstance(self.factors, Iterable):
            raise LongRopeError(f"factors = {self.factors!r} must be a list of numbers")
        factors = tuple(_positive(f"factors[{i}]", value) for i, value in enumerate(self.factors))
        object.__setattr__(self, "factors", factors)
        object.__setattr__(self, "attention_factor", _positive("attention_factor", self.attention_factor))
        object.__setattr__(self, "start_tokens", _whole("start_tokens", self.start_tokens, 0))
        if self.length is not None:
            object.__setattr__(self, "length", _whole("length", self.length, 1))

    @property
    def is_identity(self) -> bool:
        """Whether it leaves the model as it was."""
        return self.attention_factor == 1.0 and all(factor == 1.0 for factor in self.factors)

    def inv_freq(self, rope: Rope) -> np.ndarray:
        """1 / (λ_i · base^(2i/dim)) in radians per token, float64 ``(dim // 2,)`` (LongRoPE eq. 1-3).

        Raises:
            LongRopeError: if the number of factors is not ``rope.dim // 2``.
        """
        if len(self.factors) != rope.dim // 2:
            raise LongRopeError(
                f"factors: {len(self.factors)} values for a rope of dim {rope.dim}, which has {rope.dim // 2} pairs; "
                "these factors belong to another model"
            )
        return rope.inv_freq / np.asarray(self.factors)

    def times(self, factors: Sequence[float]) -> Scaling:
        """The same with every factor multiplied: a second search multiplies those of the first (LongRoPE section 4)."""
        return replace(self, factors=[ours * theirs for ours, theirs in zip(self.factors, factors, strict=True)])

    @classmethod
    def identity(cls, rope: Rope) -> Scaling:
        """All factors 1: the model as it was trained."""
        return cls([1.0] * (rope.dim // 2), scheme="original", length=rope.original_length)

    def to_json(self) -> str:
        """Indented JSON with a ``version`` field."""
        return _dumps("scaling", _plain(self))

    @classmethod
    def from_json(cls, text: str) -> Scaling:
        """The inverse of `to_json`.

        Raises:
            LongRopeError: if the text is no scaling of a known version, or holds a bad value.
        """
        try:
            return cls(**_loads(text, "scaling"))
        except TypeError as error:
            raise LongRopeError(f"scaling: field missing or unknown: {error}") from None


@dataclass(frozen=True)
class Extension:
    """What an extended model ships: factors for sequences up to L0 (short) and for longer ones (long).

    Args:
        rope: the model's geometry.
        short: used when the sequence is at most ``rope.original_length`` tokens.
        long: used beyond.
        length: L, the longest sequence in tokens that it is made for.
    """

    rope: Rope
    short: Scaling
    long: Scaling
    length: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", _whole("length", self.length, 1))
        if self.rope.factors:
            raise LongRopeError("rope.factors: the factors of an extension are relative to the plain rope; multiply")
        self.rope.scale(self.length)
        self.short.inv_freq(self.rope)
        self.long.inv_freq(self.rope)

    @property
    def scale(self) -> float:
        """The scale s = L / L0."""
        return self.rope.scale(self.length)

    def at(self, length: int) -> Scaling:
        """The factors of a sequence of so many tokens."""
        return self.short if length <= self.rope.original_length else self.long

    @classmethod
    def of(cls, rope: Rope, long: Scaling) -> Extension:
        """Long factors, with the model as it was for sequences up to L0."""
        if long.length is None:
            raise LongRopeError(
                "length is not set on this scaling; set it to the longest sequence it is made for "
                "(longrope scale MODEL --scaling FILE --length L does)"
            )
        return cls(rope=rope, short=Scaling.identity(rope), long=long, length=long.length)

    def to_json(self) -> str:
        """Indented JSON with a ``version`` field."""
        rope = {key: value for key, value in asdict(self.rope).items() if key != "factors"}
        parts = {"rope": rope, "short": _plain(self.short), "long": _plain(self.long)}
        return _dumps("extension", {"length": self.length, **parts})

    @classmethod
    def from_json(cls, text: str) -> Extension:
        """The inverse of `to_json`.

        Raises:
            LongRopeError: if the text is no extension of a known version, or holds a bad value.
        """
        data = _loads(text, "extension")
        try:
            rope, short, long = Rope(**data.pop("rope")), Scaling(**data.pop("short")), Scaling(**data.pop("long"))
            return cls(rope=rope, short=short, long=long, **data)
        except (KeyError, TypeError) as error:
            raise LongRopeError(f"extension: field missing or unknown: {error}") from None


def _dumps(kind: str, fields: Mapping[str, Any]) -> str:
    return json.dumps({"version": VERSION, "kind": kind, **fields}, indent=1, allow_nan=False) + "\n"


def _plain(scaling: Scaling) -> dict[str, Any]:
    return asdict(scaling) | {"factors": list(scaling.factors), "provenance": dict(scaling.provenance)}


def _loads(text: str, kind: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise LongRopeError(f"not JSON: {error}") from None
    if not isinstance(data, dict) or data.pop("kind", None) != kind:
        raise LongRopeError(f'not a longrope {kind}: its "kind" field must say so')
    version = data.pop("version", None)
    if not isinstance(version, int) or version > VERSION:
        raise LongRopeError(f"version = {version!r}, but this longrope reads up to {VERSION}: upgrade longrope")
    return data
