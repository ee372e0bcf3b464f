"""Which factors a serving engine computes with, and where that departs from what a checkpoint is made for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from longrope.engines.registry import ENGINES, PLAIN
from longrope.engines.rules import FIELDS, Engine, Rule
from longrope.errors import LongRopeError, did_you_mean
from longrope.rope import Rope, full_attention_fields
from longrope.scaling import Extension, Scaling
from longrope.schemes import attention_factor


@dataclass(frozen=True)
class EnginePrediction:
    """What an engine computes for one sequence, alone and read in one piece.

    Args:
        engine: a key of `ENGINES`.
        length: of the sequence, in tokens.
        factors: ``short``, ``long``, ``none`` (the plain rope), ``refused`` or ``unknown``.
        scaling: these factors with the attention factor that the engine gives them; None if there is nothing to say.
        departures: where this is not what the checkpoint is made for.
        cautions: what else can go wrong in serving, by batches and caches.
    """

    engine: str
    length: int
    factors: str
    scaling: Scaling | None
    departures: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether it is as the checkpoint is made for."""
        return not self.departures


def find_engines(name: str) -> list[str]:
    """The engine of a name, or every one for ``all``.

    Raises:
        LongRopeError: if there is no such engine.
    """
    if name != "all" and name not in ENGINES:
        raise _no_such(name)
    return list(ENGINES) if name == "all" else [name]


def _no_such(name: str) -> LongRopeError:
    return LongRopeError(
        f"engine = {name!r} is unknown; choose all or one of {', '.join(ENGINES)}{did_you_mean(name, ENGINES)}"
    )


def rope_scaling(config: Mapping[str, Any], fields: Iterable[str]) -> Mapping[str, Any] | None:
    """The longrope entry of the first of some config fields that is there; None if that is none or of another type."""
    for name in fields:
        scaling = config.get(name)
        if isinstance(scaling, Mapping) and scaling:
            scaling = full_attention_fields(scaling)
            kind = scaling.get("rope_type", scaling.get("type"))
            return scaling if kind in ("longrope", "su") and "long_factor" in scaling else None
    return None


def extension_in_config(config: Mapping[str, Any]) -> Extension:
    """The extension that a config holds.

    Raises:
        LongRopeError: if it holds none, or a bad one.
    """
    scaling = rope_scaling(config, FIELDS)
    if scaling is None:
        raise LongRopeError("rope_scaling: this config holds no longrope factors; export the model with longrope")
    parameters = full_attention_fields(config.get("rope_parameters"))
    original = config.get("original_max_position_embeddings", scaling.get("original_max_position_embeddings"))
    try:
        base, length = config.get("rope_theta", parameters.get("rope_theta")), config["max_position_embeddings"]
        rope = Rope(dim=2 * len(scaling["long_factor"]), base=base, original_length=original)  # pyright: ignore
        factor = scaling.get("attention_factor") or attention_factor("su", rope, length)
        short, long = (Scaling(scaling[f"{name}_factor"], attention_factor=factor) for name in ("short", "long"))
    except (KeyError, TypeError) as error:
        raise LongRopeError(f"config.json: a field is missing or bad: {error}; export the model again") from None
    return Extension(rope=rope, short=short, long=long, length=length)


def predict(
    engine: str, config: Mapping[str, Any], extension: Extension, *, limit: int, length: int
) -> EnginePrediction:
    """What an engine computes with a checkpoint, from its ``config.json``.

    Args:
        engine: a key of `ENGINES`.
        config: of the checkpoint.
        extension: what it is made for.
        limit: the maximum length in tokens that the engine is launched with; not all take one.
        length: of the sequence, in tokens.

    Raises:
        LongRopeError: if the engine is unknown or the config holds no longrope factors.
    """
    if engine not in ENGINES:
        raise _no_such(engine)
    reads, held, kind = ENGINES[engine], extension_in_config(config), config.get("model_type", "?")
    rule = reads.models.get(kind)
    if rule is None:
        return EnginePrediction(
            engine, length, "unknown", None, (f"what {engine} does with model type {kind!r} is not known",)
        )
    stop = (
        f"model type {kind!r}: {engine} {rule}" if isinstance(rule, str) else over(engine, reads, held, limit, length)
    )
    if stop or isinstance(rule, str):
        return EnginePrediction(engine, length, "refused", None, (stop,))
    limit = min(limit, held.length) if reads.beyond == "cut" else limit
    which, scaling = _computed(reads, rule, config, held, limit, length)
    who = f"model type {kind!r}: {engine}" if rule is PLAIN else engine
    departures = [*_departures(who, which, scaling, extension, length)]
    if which == "none" and rule is not PLAIN:
        departures.append(f"{engine} reads {' or '.join(reads.fields)} alone, and config.json has no factors there")
    if length == held.rope.original_length + 1 and rule.slip:
        departures.append(f"{engine}: {rule.slip}")
    two = not np.allclose(held.short.factors, held.long.factors)
    cautions = [f"{engine}: {rule.caution}"] if two and rule.caution else []
    if rule.options:
        cautions.append(f"{engine} needs {rule.options}: it cannot compile how transformers chooses the set")
    return EnginePrediction(engine, length, which, scaling, tuple(departures), tuple(cautions))


def over(engine: str, reads: Engine, held: Extension, limit: int, length: int) -> str:
    """Why an engine does not take so many tokens; empty if it does."""
    if reads.beyond == "refuse" and limit > held.length:
        return f"{engine} does not start for {limit:,} tokens: max_position_embeddings is {held.length:,}"
    longest = min(limit, held.length) if reads.beyond == "cut" else limit
    if reads.takes_limit and length > longest:
        return f"{engine} takes sequences of up to {longest:,} tokens when launched for {limit:,}"
    return ""


def _computed(
    reads: Engine, rule: Rule, config: Mapping[str, Any], held: Extension, limit: int, length: int
) -> tuple[str, Scaling]:
    scaling = rope_scaling(config, reads.fields)
    which = "none" if scaling is None else rule.choice(held.rope.original_length, limit, length)
    if scaling is None or which == "none":
        return "none", Scaling.identity(held.rope)
    chosen = held.short if which == "short" else held.long
    return which, replace(chosen, attention_factor=rule.attention(scaling, held, which, limit))


def _departures(engine: str, which: str, scaling: Scaling, extension: Extension, length: int) -> Iterable[str]:
    due = extension.at(length)
    name = "short" if due is extension.short else "long"
    used = "no factors at all" if which == "none" else f"the {which} factors"
    if not np.allclose(scaling.factors, due.factors, rtol=1e-6):
        yield f"{engine} uses {used} at {length:,} tokens, where the {name} ones belong"
    elif not np.isclose(scaling.attention_factor, due.attention_factor, rtol=1e-6):
        yield (
            f"{engine} uses an attention factor of {scaling.attention_factor:.6g} at {length:,} tokens, where "
            f"{due.attention_factor:.6g} belongs"
        )
    if length > extension.length:
        yield f"the checkpoint is made for up to {extension.length:,} tokens"
