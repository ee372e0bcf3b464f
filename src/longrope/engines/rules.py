"""The rules by which serving engines choose factors and attention factor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from longrope.scaling import Extension
from longrope.schemes import attention_factor

FIELDS = ("rope_scaling", "rope_parameters")
Choice = Callable[[int, int, int], str]
Attention = Callable[[Mapping[str, Any], Extension, str, int], float]


def by_sequence(original: int, limit: int, length: int) -> str:
    """The set by the length of the sequence."""
    return "long" if length > original else "short"


def by_position(original: int, limit: int, length: int) -> str:
    """SGLang: by whether a position is above L0, which that of token L0 + 1 is not yet."""
    return by_sequence(original + 1, limit, length)


def by_launch(original: int, limit: int, length: int) -> str:
    """The set by the maximum length that the engine is launched with, at every length."""
    return "long" if limit > original else "short"


def by_context(original: int, limit: int, length: int) -> str:
    """As `by_launch`, in llama.cpp, whose contexts are multiples of 256."""
    return by_launch(original, -(-limit // 256) * 256, length)


def always(which: str) -> Choice:
    """The same set at every length, or ``none``."""
    return lambda original, limit, length: which


def own(scaling: Mapping[str, Any], held: Extension, which: str, limit: int) -> float:
    """The attention factor that the config names."""
    return held.long.attention_factor


def formula(scaling: Mapping[str, Any], held: Extension, which: str, limit: int) -> float:
    """Sqrt(1 + ln s / ln L0) with s = L / L0, whatever the config names."""
    return attention_factor("su", held.rope, held.length)


def mscale(scaling: Mapping[str, Any], held: Extension, which: str, limit: int) -> float:
    """``short_mscale`` or ``long_mscale`` if the config has it, else the formula."""
    named = scaling.get(f"{which}_mscale")
    return formula(scaling, held, which, limit) if named is None else float(named)


def launched(scaling: Mapping[str, Any], held: Extension, which: str, limit: int) -> float:
    """ExLlamaV2: the formula with s = launched length / L0, and 1 up to L0."""
    return attention_factor("su", held.rope, max(limit, held.rope.original_length))


def unscaled(scaling: Mapping[str, Any], held: Extension, which: str, limit: int) -> float:
    """No attention factor."""
    return 1.0


@dataclass(frozen=True)
class Rule:
    """What an engine does for a model type.

    Args:
        choice: from L0, the launched length and the sequence's length in tokens to ``short``, ``long`` or ``none``.
        attention: from ``rope_scaling``, what the config holds, the set and the launched length to the factor.
        caution: what goes wrong in serving where the two sets differ.
        options: what the engine must be launched with to run this at all.
        slip: what goes wrong at L0 + 1 tokens, with any factors.
    """

    choice: Choice
    attention: Attention
    caution: str = ""
    options: str = ""
    slip: str = ""


@dataclass(frozen=True)
class Engine:
    """How an engine reads a checkpoint.

    Args:
        version: whose source this is.
        models: by model type, its rule or why the engine stops; model types that are not there were not read.
        fields: where it looks for the factors, the first that is there.
        beyond: what it does when launched for more than ``max_position_embeddings``: refuse, cut, or nothing ("").
        takes_limit: whether it is launched for a maximum length at all.
    """

    version: str
    models: Mapping[str, Rule | str]
    fields: tuple[str, ...] = FIELDS
    beyond: str = ""
    takes_limit: bool = True
