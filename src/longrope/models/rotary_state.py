"""The state dict entry of a `LongRoPE`: geometry, factors and attention factors as JSON in a uint8 tensor."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.scaling import Scaling

VERSION = 1


@dataclass(frozen=True)
class RotaryState:
    """Everything that decides the numbers of a `LongRoPE`.

    Args:
        rope: Geometry of the model.
        scalings: Short and long factors, or one scaling for each row.
        by_length: Whether the length selects between short and long factors.
        max_position: L, the longest sequence in tokens.
    """

    rope: Rope
    scalings: tuple[Scaling, ...]
    by_length: bool
    max_position: int

    def encode(self) -> Tensor:
        """Return the state as JSON in a uint8 tensor, which safetensors can hold and no cast can round."""
        text = json.dumps({"version": VERSION, **asdict(self)})
        return torch.from_numpy(np.frombuffer(text.encode(), np.uint8).copy())

    @classmethod
    def decode(cls, tensor: Tensor) -> RotaryState:
        """Return the state in a tensor of `encode`.

        Raises:
            LongRopeError: The tensor holds something else.
        """
        try:
            fields = json.loads(bytes(tensor.tolist()))
            if fields.pop("version") != VERSION:
                raise LongRopeError(f"_extra_state: unknown version. This longrope reads version {VERSION}.")
            rope, scalings = Rope(**fields.pop("rope")), fields.pop("scalings")
            return cls(rope=rope, scalings=tuple(Scaling(**scaling) for scaling in scalings), **fields)
        except (AttributeError, ValueError, KeyError, TypeError) as error:
            raise LongRopeError(f"_extra_state: damaged ({error}). Save the module again.") from None

    def check_geometry(self, module_state: RotaryState) -> None:
        """Raise unless this state and a module's differ in factors only.

        Raises:
            LongRopeError: The geometries differ.
        """
        mine, module = self.geometry(), module_state.geometry()
        differences = [
            f"{name} = {mine[name]}: this module has {module[name]}" for name in mine if mine[name] != module[name]
        ]
        if differences:
            raise LongRopeError(f"state_dict {', '.join(differences)}. Build the module with the same geometry first.")

    def geometry(self) -> dict[str, object]:
        """Return the numbers that loading must not change, by name."""
        return {
            "dim": self.rope.dim,
            "base": self.rope.base,
            "original_max_position": self.rope.original_length,
            "max_position": self.max_position,
            "rope.factors": self.rope.factors,
            "rope.attention_factor": self.rope.attention_factor,
            "rope.short_factors": self.rope.short_factors,
            "by_length": self.by_length,
            "number of scalings": len(self.scalings),
        }
