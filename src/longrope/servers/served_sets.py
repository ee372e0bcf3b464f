"""The sets of factors that a server may compute with, for one checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from longrope.errors import LongRopeError
from longrope.formats.hf_config import extension_of_config
from longrope.formats.own_rope import scaling_type
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import attention_factor, scheme

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

LONG, SHORT, ORIGINAL = "long", "short", "original"
NO_ATTENTION, FORMULA = "attention factor 1", "attention factor by formula"


@dataclass(frozen=True)
class ServedSets:
    """The sets of factors to compare a server with.

    Args:
        extension: Factors of the checkpoint, relative to plain RoPE.
        sets: Sets by name, relative to plain RoPE. The checkpoint's are called long and short, a single one by its rope
            type; the others are those that a server may use by mistake.
    """

    extension: Extension
    sets: Mapping[str, Scaling]

    @classmethod
    def of(cls, config: PreTrainedConfig) -> ServedSets:
        """Return the sets of a checkpoint; equal ones appear once.

        Args:
            config: Config of the checkpoint, loaded by transformers.

        Raises:
            LongRopeError: The checkpoint carries no scaling, or one whose factors change with every length.
        """
        kind = scaling_type(config)
        if kind is None:
            raise LongRopeError(
                "checkpoint: its config.json carries no rope scaling, so there is nothing to find in a server. "
                "Give the folder of an export, or one whose config.json has rope_scaling."
            )
        if kind == "dynamic":
            raise LongRopeError(
                "rope_type = 'dynamic': its factors change with every length, so no set of them can be found. "
                "Probe a checkpoint with another type."
            )
        extension = extension_of_config(config.get_text_config().to_dict())
        rope, long = extension.rope, extension.long
        one_set = _equal(extension.short, long)
        sets = {kind: long} if one_set else {LONG: long, SHORT: extension.short}
        sets |= {
            ORIGINAL: Scaling.identity(rope),
            "default yarn" if kind == "yarn" else "yarn": scheme("yarn", rope, extension.length),
            NO_ATTENTION: replace(long, attention_factor=1.0),
        }
        if kind == "longrope":  # whose attention factor most engines compute themselves
            sets[FORMULA] = replace(long, attention_factor=attention_factor("su", rope, extension.length))
        distinct: dict[str, Scaling] = {}
        for name, scaling in sets.items():
            if not any(_equal(scaling, other) for other in distinct.values()):
                distinct[name] = scaling
        return cls(extension, distinct)

    def expected(self, length: int) -> str:
        """Return the name of the set that the checkpoint is made for at a length in tokens."""
        scaling = self.extension.at(length)
        return next(name for name, other in self.sets.items() if _equal(scaling, other))


def relative(scaling: Scaling, rope: Rope) -> Scaling:
    """Return a set relative to the factors that a model's checkpoint carries, as `longrope.patch` takes it.

    Args:
        scaling: Factors relative to plain RoPE.
        rope: Geometry of the loaded model.
    """
    carried = rope.factors or (1.0,) * (rope.dim // 2)
    return Scaling(
        [factor / before for factor, before in zip(scaling.factors, carried, strict=True)],
        attention_factor=scaling.attention_factor / rope.attention_factor,
        start_tokens=scaling.start_tokens,
    )


def _equal(scaling: Scaling, other: Scaling) -> bool:
    attention = np.isclose(scaling.attention_factor, other.attention_factor, rtol=1e-6)
    return bool(attention) and np.allclose(scaling.factors, other.factors, rtol=1e-6, atol=0)
