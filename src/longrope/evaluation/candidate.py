"""A candidate of a comparison: weights, and the factors that they run with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from longrope.scaling import Extension, Scaling


@dataclass(frozen=True)
class Candidate:
    """Weights with a scaling.

    Args:
        weights: Name of the model.
        scaling: Factors for it; None runs the checkpoint as it is.
        digest: Fingerprint of the weights, where the name alone does not say which they are.
    """

    weights: str = ""
    scaling: Scaling | Extension | None = None
    digest: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the candidate as JSON values."""
        scaling = None if self.scaling is None else json.loads(self.scaling.to_json())
        return {"weights": self.weights, "factors": scaling}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        """Return the candidate that `to_json` wrote.

        Raises:
            LongRopeError: If its factors are damaged.
        """
        factors = data.get("factors")
        if factors is None:
            return cls(str(data.get("weights", "")))
        reader = Extension if isinstance(factors, dict) and factors.get("kind") == "extension" else Scaling
        return cls(str(data.get("weights", "")), reader.from_json(json.dumps(factors)))

    @property
    def key(self) -> str:
        """Cache key: candidates with equal keys have equal losses."""
        extension = self.scaling
        scalings = [extension.short, extension.long] if isinstance(extension, Extension) else [extension]
        values = [s and (list(s.factors), s.attention_factor, s.start_tokens) for s in scalings]
        digest = [self.digest] if self.digest else []
        return hashlib.sha256(json.dumps([self.weights, *values, *digest]).encode()).hexdigest()[:12]

    def at(self, length: int | None) -> Candidate:
        """Return the candidate with the one set of factors that it has at a length in tokens; None changes nothing."""
        return self if length is None else replace(self, scaling=scaling_at(self.scaling, length))

    @property
    def long_alone(self) -> Candidate | None:
        """The candidate that has the long factors at every length, as a static export; None with one set of factors."""
        if isinstance(self.scaling, Extension) and self.scaling.has_two_sets:
            return replace(self, scaling=self.scaling.long)
        return None

    @property
    def scalings(self) -> dict[str, Scaling]:
        """The scalings by the suffix that a figure adds to the candidate's name."""
        if isinstance(self.scaling, Extension):
            own_short = self.scaling.has_two_sets and not self.scaling.short.is_identity
            return {"": self.scaling.long} | ({" (short)": self.scaling.short} if own_short else {})
        return {} if self.scaling is None else {"": self.scaling}


def scaling_at(scaling: Scaling | Extension | None, length: int) -> Scaling | None:
    """Return the set of factors for a sequence of some tokens; None is the model as it is."""
    return scaling.at(length) if isinstance(scaling, Extension) else scaling
