"""Rescale factors for every rotary pair, and the two sets of them that an extended model ships."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from typing import Any

import numpy as np

from longrope.checks import positive, positives, whole
from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.units import token_count

VERSION = 1
ORIGINAL = "original"  # scheme of the factors that a model came with


@dataclass(frozen=True)
class Scaling:
    """Rescale factors λ of every rotary pair plus one attention factor, the common form of all RoPE schemes.

    Args:
        factors: λ of every pair, ``(dim // 2,)``, finite and above 0; 1 leaves a pair unchanged, s interpolates it.
            A list, an array, or a tensor of any float dtype and device.
        attention_factor: Number that multiplies cos and sin.
        start_tokens: n̂ in tokens; positions below it keep the original rotation (LongRoPE eq. 3).
        scheme: Name of the scheme or method that chose the factors.
        length: Target length in tokens, such as 32768 or ``"32k"``.
        provenance: Record of the search (seed, perplexities, …), JSON values only.

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
        object.__setattr__(self, "factors", positives("factors", self.factors))
        object.__setattr__(self, "attention_factor", positive("attention_factor", self.attention_factor))
        if not isinstance(self.scheme, str) or any("\ud800" <= letter <= "\udfff" for letter in self.scheme):
            raise LongRopeError(f"scheme = {self.scheme!r} must be text, without half characters")
        object.__setattr__(self, "start_tokens", whole("start_tokens", self.start_tokens, 0))
        if self.length is not None:
            object.__setattr__(self, "length", token_count("length", self.length, 1))
        if not isinstance(self.provenance, Mapping):
            raise LongRopeError(f"provenance = {self.provenance!r} must be an object. Write {{}}.")

    @property
    def is_identity(self) -> bool:
        """Whether these factors leave the model unchanged."""
        return self.attention_factor == 1.0 and all(factor == 1.0 for factor in self.factors)

    def inv_freq(self, rope: Rope) -> np.ndarray:
        """Return 1 / (λ_i · base^(2i/dim)) in radians per token, float64 ``(dim // 2,)`` (LongRoPE eq. 1-3).

        Raises:
            LongRopeError: The number of factors is not ``rope.dim // 2``.
        """
        if len(self.factors) != rope.dim // 2:
            raise LongRopeError(
                f"factors: {len(self.factors)} values for a rope of dim {rope.dim}, which has {rope.dim // 2} pairs; "
                "these factors belong to another model"
            )
        return rope.inv_freq / np.asarray(self.factors)

    def times(self, factors: Sequence[float]) -> Scaling:
        """Return this scaling with every factor multiplied, as a second search does (LongRoPE section 4)."""
        return replace(self, factors=[first * second for first, second in zip(self.factors, factors, strict=True)])

    def rope_after(self, rope: Rope) -> Rope:
        """Return the geometry of a model after fine-tuning with these factors at their length.

        Raises:
            LongRopeError: The factors have no length, or belong to another rope.
        """
        if self.length is None:
            raise LongRopeError("length = None: the rope after fine-tuning needs the trained length. Set length.")
        self.inv_freq(rope)  # refuses another rope's
        product = self.times(rope.factors or [1.0] * (rope.dim // 2))
        return replace(rope, original_length=self.length, factors=product.factors)

    @classmethod
    def identity(cls, rope: Rope) -> Scaling:
        """Return the scaling whose factors are all 1: the model as it was trained."""
        return cls([1.0] * (rope.dim // 2), scheme=ORIGINAL, length=rope.original_length)

    def to_json(self) -> str:
        """Return indented JSON with a ``version`` field."""
        return _dumps("scaling", _plain(self))

    @classmethod
    def from_json(cls, text: str) -> Scaling:
        """Read the JSON of `to_json`.

        Raises:
            LongRopeError: The text is not a scaling of a known version, or holds a bad value.
        """
        try:
            return _finite(cls(**_loads(text, "scaling")))
        except TypeError as error:
            raise LongRopeError(f"scaling: field missing or unknown: {error}") from None


@dataclass(frozen=True)
class Extension:
    """The factors of an extended model: short ones for sequences up to L0, long ones beyond.

    Args:
        rope: Geometry of the model, or the model or its config.
        short: Factors for sequences of at most ``rope.original_length`` tokens.
        long: Factors for longer sequences.
        length: L, the longest supported sequence in tokens.
    """

    rope: Rope
    short: Scaling
    long: Scaling
    length: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", token_count("length", self.length, 1))
        object.__setattr__(self, "rope", Rope.of(self.rope))
        self.rope.scale(self.length)
        for name in ("short", "long"):
            _check_scaling(name, getattr(self, name)).inv_freq(self.rope)

    @property
    def scale(self) -> float:
        """The scale s = L / L0."""
        return self.rope.scale(self.length)

    @property
    def has_two_sets(self) -> bool:
        """Whether short sequences have other factors than long ones."""
        return (self.short.factors, self.short.attention_factor) != (self.long.factors, self.long.attention_factor)

    def at(self, length: int) -> Scaling:
        """Return the factors for a sequence of ``length`` tokens."""
        rope = self.rope
        if length <= rope.short_length and rope.short_factors != rope.factors:  # the checkpoint's own set
            ratios = [short / long for short, long in zip(rope.short_factors, rope.factors, strict=True)]
            return Scaling(ratios, scheme=ORIGINAL)
        return self.short if length <= rope.original_length else self.long

    @property
    def total(self) -> Extension:
        """The same extension relative to plain RoPE, as configs and other programs hold it.

        The short set of a checkpoint that has one of its own stays, up to the length that it is for.
        """
        rope = self.rope
        if not rope.factors:
            return self
        border = rope.short_length if rope.has_two_sets else rope.original_length
        short = replace(self.at(border), length=border)
        sets = [
            replace(scaling.times(rope.factors), attention_factor=scaling.attention_factor * rope.attention_factor)
            for scaling in (short, self.long)
        ]
        return Extension(replace(rope.plain, original_length=border), short=sets[0], long=sets[1], length=self.length)

    @classmethod
    def of(cls, rope: Rope | Any, long: Scaling) -> Extension:
        """Return an extension of a rope, a model or a config, whose short set is the original rotation."""
        long = _check_scaling("long", long)
        if long.length is None:
            raise LongRopeError("length = None: an extension needs a length in tokens. Set the scaling's length.")
        return cls(rope=rope, short=Scaling.identity(Rope.of(rope)), long=long, length=long.length)

    def to_json(self) -> str:
        """Return indented JSON with a ``version`` field."""
        sets = {"short": _plain(self.short), "long": _plain(self.long)}
        return _dumps("extension", {"length": self.length, "rope": self.rope.to_dict(), **sets})

    @classmethod
    def from_json(cls, text: str) -> Extension:
        """Read the JSON of `to_json`.

        Raises:
            LongRopeError: The text is not an extension of a known version, or holds a bad value.
        """
        data = _loads(text, "extension")
        try:
            rope, short, long = Rope(**data.pop("rope")), Scaling(**data.pop("short")), Scaling(**data.pop("long"))
            return cls(rope=rope, short=_finite(short), long=_finite(long), **data)
        except (KeyError, TypeError) as error:
            raise LongRopeError(f"extension: field missing or unknown: {error}") from None


def _check_scaling(name: str, scaling: Any) -> Scaling:
    if not isinstance(scaling, Scaling):
        raise LongRopeError(f"{name} = {scaling!r:.60}: not a Scaling. Write Scaling(factors).")
    return scaling


def check_rope(scaling: Scaling | Extension, rope: Rope, source: str = "") -> None:
    """Raise unless factors fit a model's rope: an extension has the same rope, and a scaling one factor per pair.

    Args:
        scaling: Factors of one set or of two.
        rope: Geometry of the model.
        source: File or field that the factors came from, to begin the message with.

    Raises:
        LongRopeError: The factors are for another rope, or of another type.
    """
    prefix = f"{source}: " if source else ""
    if isinstance(scaling, Extension):
        if scaling.rope != rope:
            reason, remedy = "", "Use factors made for this model"
            if rope.factors:
                reason = ", because its checkpoint carries a rope scaling"
                remedy += ", or load the checkpoint that they were made for"
            raise LongRopeError(f"{prefix}extension.rope = {scaling.rope}: the model has {rope}{reason}. {remedy}.")
        return
    if not isinstance(scaling, Scaling):
        make = "Make one with longrope.scheme, longrope.load_factors or longrope.Scaling(factors)"
        remedy = "Give its extension" if hasattr(scaling, "extension") else make  # the result of a search
        raise LongRopeError(f"{prefix}scaling = {scaling!r:.60}: not a Scaling or an Extension. {remedy}.")
    try:
        scaling.inv_freq(rope)
    except LongRopeError as error:
        raise LongRopeError(f"{prefix}{error}") from None
    if rope.factors and not scaling.is_identity and (scaling.length or math.inf) <= rope.original_length:
        raise LongRopeError(
            f"{prefix}length = {scaling.length}: the model's checkpoint carries a rope scaling for "
            f"{rope.original_length} tokens already, which factors multiply. Use factors for a longer sequence."
        )


def as_extension(scaling: Scaling | Extension, rope: Rope, source: str = "") -> Extension:
    """Return factors as the extension of a model: a scaling becomes the long set beside the original as short set.

    Args:
        scaling: Factors of one set, with their length, or of two.
        rope: Geometry of the model.
        source: File or field that the factors came from, to begin the message with.

    Raises:
        LongRopeError: The factors are for another rope, or a scaling has no length.
    """
    check_rope(scaling, rope, source)
    return scaling if isinstance(scaling, Extension) else Extension.of(rope, scaling)


def _dumps(kind: str, fields: Mapping[str, Any]) -> str:
    return json.dumps({"version": VERSION, "kind": kind, **fields}, indent=1, allow_nan=False) + "\n"


def _finite(scaling: Scaling) -> Scaling:
    """Return the scaling if its provenance has neither NaN nor 1e999, which Python's JSON reader accepts."""
    try:
        json.dumps(scaling.provenance, allow_nan=False)
    except ValueError:
        raise LongRopeError("provenance: a number is not finite; write null") from None
    return scaling


def _plain(scaling: Scaling) -> dict[str, Any]:
    return asdict(scaling) | {"factors": list(scaling.factors), "provenance": dict(scaling.provenance)}


def _loads(text: str, kind: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (TypeError, ValueError) as error:
        raise LongRopeError(f"not JSON: {error}") from None
    if not isinstance(data, dict) or data.pop("kind", None) != kind:
        raise LongRopeError(f'not a longrope {kind}: its "kind" field must say so')
    version = data.pop("version", None)
    if not isinstance(version, int) or version > VERSION:
        raise LongRopeError(f"version = {version!r}, but this longrope reads up to {VERSION}: upgrade longrope")
    return data
