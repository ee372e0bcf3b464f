"""The rules by which serving engines choose factors and attention factor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longrope.rope import Rope
    from longrope.scaling import Extension, Scaling

FIELDS = ("rope_scaling", "rope_parameters")
Choice = Callable[[int, int, int], str]
Attention = Callable[[Mapping[str, Any], "Extension", str, int], float]
YarnReading = Callable[[Mapping[str, Any], "Rope", int, int], "Scaling"]


def by_sequence(original: int, limit: int, length: int) -> str:
    """Choose the set by the length of the sequence."""
    return "long" if length > original else "short"


def by_position(original: int, limit: int, length: int) -> str:
    """Choose the set as SGLang does: by whether a position is above L0, which that of token L0 + 1 is not yet."""
    return by_sequence(original + 1, limit, length)


def by_launch(original: int, limit: int, length: int) -> str:
    """Choose the set by the maximum length that the engine is launched with, at every length."""
    return "long" if limit > original else "short"


def by_context(original: int, limit: int, length: int) -> str:
    """Choose the set as `by_launch`, in llama.cpp, whose contexts are multiples of 256."""
    return by_launch(original, -(-limit // 256) * 256, length)


def always(name: str) -> Choice:
    """Return a rule that chooses the same set at every length: ``short``, ``long`` or ``none``."""
    return lambda original, limit, length: name


def own(scaling: Mapping[str, Any], extension: Extension, name: str, limit: int) -> float:
    """Return the attention factor that the config names."""
    return extension.long.attention_factor


def formula(scaling: Mapping[str, Any], extension: Extension, name: str, limit: int) -> float:
    """Return sqrt(1 + ln s / ln L0) with s = L / L0, whatever the config names."""
    from longrope.schemes import attention_factor  # numpy, which --help does not need

    return attention_factor("su", extension.rope, extension.length)


def mscale(scaling: Mapping[str, Any], extension: Extension, name: str, limit: int) -> float:
    """Return ``short_mscale`` or ``long_mscale`` if the config has it, else the formula."""
    value = scaling.get(f"{name}_mscale")
    return formula(scaling, extension, name, limit) if value is None else float(value)


def launched(scaling: Mapping[str, Any], extension: Extension, name: str, limit: int) -> float:
    """Return ExLlamaV2's attention factor: the formula with s = launched length / L0, and 1 up to L0."""
    from longrope.schemes import attention_factor  # numpy, which --help does not need

    return attention_factor("su", extension.rope, max(limit, extension.rope.original_length))


def unscaled(scaling: Mapping[str, Any], extension: Extension, name: str, limit: int) -> float:
    """Return 1, the attention factor of a model without factors."""
    return 1.0


def yarn_as_written(fields: Mapping[str, Any], rope: Rope, length: int, limit: int) -> Scaling:
    """Return the factors and the attention factor of a ``yarn`` scaling by all of its fields."""
    return replace(yarn_by_factor(fields, rope, length, limit), attention_factor=float(fields["attention_factor"]))


def yarn_by_factor(fields: Mapping[str, Any], rope: Rope, length: int, limit: int) -> Scaling:
    """Return the factors of a ``yarn`` scaling, with the attention factor 0.1·ln factor + 1."""
    from longrope.schemes import yarn  # numpy, which --help does not need

    return yarn(rope, length, **{name: float(fields[name]) for name in ("factor", "beta_fast", "beta_slow")})  # pyright: ignore[reportArgumentType]


def yarn_by_length(fields: Mapping[str, Any], rope: Rope, length: int, limit: int) -> Scaling:
    """Return what ExLlamaV3 computes, whose factor is L / L0 whatever the field says."""
    return yarn_as_written({**fields, "factor": length / rope.original_length}, rope, length, limit)


def yarn_by_launch(fields: Mapping[str, Any], rope: Rope, length: int, limit: int) -> Scaling:
    """Return what ExLlamaV2 computes: plain RoPE up to L0, and beyond 32 and 1 turns within the launched length."""
    from longrope.scaling import Scaling

    if limit <= rope.original_length:
        return Scaling.identity(rope)
    launched_rope = replace(rope, original_length=limit)
    return yarn_by_factor({**fields, "beta_fast": 32, "beta_slow": 1}, launched_rope, length, limit)


@dataclass(frozen=True)
class Rule:
    """What an engine does for a model type.

    Args:
        choice: Function from L0, the launched length and the sequence's length in tokens to ``short``, ``long`` or
            ``none``.
        attention: Function from ``rope_scaling``, the config's extension, the chosen set and the launched length to the
            attention factor.
        caution: Fault in serving where the two sets differ.
        options: Options without which the engine cannot run this model type.
        slip: Fault at L0 + 1 tokens, with any factors.
    """

    choice: Choice
    attention: Attention
    caution: str = ""
    options: str = ""
    slip: str = ""


@dataclass(frozen=True)
class YarnRule:
    """What an engine does with a ``yarn`` scaling.

    Args:
        reading: Function from the scaling's fields, the rope, L and the launched length to the engine's factors.
        models: Rules of the model types whose rule for ``longrope`` does not hold, as in `Engine`.
        launch: Command for the model types whose ``longrope`` factors the engine cannot use. Beside the names in
            `Engine`, the scaling's fields and ``{original}`` are filled in; the empty text stands for the engine's.
        note: Advice for the launch.
    """

    reading: YarnReading = yarn_as_written
    models: Mapping[str, Rule | str] = field(default_factory=dict)
    launch: str = ""
    note: str = ""


@dataclass(frozen=True)
class Engine:
    """A serving engine: how it is launched, and how it reads a checkpoint.

    Args:
        version: Version whose source was read.
        models: Rule of each model type, or the reason why the engine stops; other model types were not read.
        launch: Shell command, or Python code, that serves a checkpoint. ``{folder}``, ``{file}`` (a GGUF beside the
            folder) and ``{length}`` are filled in, quoted.
        in_python: Whether ``launch`` is Python code.
        note: Advice for the launch, where ``{original}`` and ``{length}`` are filled in.
        fields: Fields of the config that may hold the factors; the first that is present counts.
        beyond: Reaction to a launch for more than ``max_position_embeddings``: refuse, cut, or nothing ("").
        takes_limit: Whether the engine is launched for a maximum length at all.
        yarn: What it does with a checkpoint whose factors are a YaRN.
    """

    version: str
    models: Mapping[str, Rule | str]
    launch: str
    in_python: bool = False
    note: str = ""
    fields: tuple[str, ...] = FIELDS
    beyond: str = ""
    takes_limit: bool = True
    yarn: YarnRule = field(default_factory=YarnRule)

    def rule(self, model_type: str, *, yarn: bool) -> Rule | str | None:
        """Return the rule of a model type for a ``longrope`` or a ``yarn`` scaling; None if it was not read."""
        return {**self.models, **(self.yarn.models if yarn else {})}.get(model_type)
