"""Which factors a serving engine computes with, and where they depart from those that a checkpoint is made for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from longrope.engines.registry import ENGINES, PLAIN
from longrope.engines.rules import FIELDS, Engine, Rule, yarn_as_written
from longrope.errors import LongRopeError, unknown
from longrope.rope import Rope, full_attention_fields, text_fields
from longrope.scaling import Extension, Scaling
from longrope.schemes import attention_factor

YARN_FIELDS = ("factor", "beta_fast", "beta_slow", "attention_factor", "original_max_position_embeddings")


@dataclass(frozen=True)
class EnginePrediction:
    """The factors that an engine computes with for one sequence, alone and read in one piece.

    Args:
        engine: Name of the engine, a key of `ENGINES`.
        length: Length of the sequence in tokens.
        factors: ``short``, ``long``, ``none`` (the plain rope), ``other`` (what it makes of a YaRN), ``refused`` or
            ``unknown``.
        scaling: These factors with the engine's attention factor; None if the engine does not run or is unknown.
        departures: Differences from the factors that the checkpoint is made for.
        cautions: Other faults in serving, by batches and caches.
    """

    engine: str
    length: int
    factors: str
    scaling: Scaling | None
    departures: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the engine computes as the checkpoint is made for."""
        return not self.departures


def find_engines(name: str) -> list[str]:
    """Return the engine of a name, or every one for ``all``.

    Raises:
        LongRopeError: There is no such engine.
    """
    if name != "all":
        _check_engine(name)
    return list(ENGINES) if name == "all" else [name]


def _check_engine(name: str) -> None:
    if name not in ENGINES:
        raise unknown("engine", name, ["all", *ENGINES])


def rope_scaling(config: Mapping[str, Any], fields: Iterable[str]) -> Mapping[str, Any] | None:
    """Return the longrope scaling in the first of some config fields that is set; None if there is none."""
    for name in fields:
        scaling = config.get(name)
        if isinstance(scaling, Mapping) and scaling:
            scaling = full_attention_fields(scaling)
            kind = scaling.get("rope_type", scaling.get("type"))
            return scaling if kind in ("longrope", "su") and "long_factor" in scaling else None
    return None


def yarn_scaling(config: Mapping[str, Any], fields: Iterable[str] = FIELDS) -> Mapping[str, Any] | None:
    """Return the YaRN scaling, with all fields that an export writes, in the first config field that is set."""
    scaling = next((config[name] for name in fields if isinstance(config.get(name), Mapping) and config[name]), {})
    scaling = full_attention_fields(scaling)
    return scaling if scaling.get("rope_type") == "yarn" and set(YARN_FIELDS) <= set(scaling) else None


def extension_in_config(config: Mapping[str, Any]) -> Extension:
    """Return the extension that a config describes.

    Raises:
        LongRopeError: The config describes none, or a bad one.
    """
    config = text_fields(config)
    yarn = yarn_scaling(config)
    scaling = rope_scaling(config, FIELDS) if yarn is None else yarn
    if scaling is None:
        raise LongRopeError("rope_scaling: this config has no longrope factors. Export the model with longrope.")
    parameters = full_attention_fields(config.get("rope_parameters"))
    original = config.get("original_max_position_embeddings", scaling.get("original_max_position_embeddings"))
    base = scaling.get("rope_theta", config.get("rope_theta", parameters.get("rope_theta")))
    try:
        length = config["max_position_embeddings"]
        dim = _rotated(config, parameters) if yarn is not None else 2 * len(scaling["long_factor"])
        rope = Rope(dim=dim, base=base, original_length=original)  # pyright: ignore
        if yarn is not None:
            short = long = yarn_as_written(yarn, rope, length, length)
        else:
            factor = scaling.get("attention_factor") or attention_factor("su", rope, length)
            attention = scaling if config.get("model_type") == "phimoe" else {}  # which alone has one for each set
            short, long = (
                Scaling(scaling[f"{name}_factor"], attention_factor=attention.get(f"{name}_mscale") or factor)
                for name in ("short", "long")
            )
    except (KeyError, TypeError) as error:
        raise LongRopeError(f"config.json: a field is missing or bad ({error}). Export the model again.") from None
    return Extension(rope=rope, short=short, long=long, length=length)


def _rotated(config: Mapping[str, Any], parameters: Mapping[str, Any]) -> int:
    """Return the rotated dimensions of a head."""
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(head_dim * (parameters.get("partial_rotary_factor") or 1))


def predict(
    engine: str, config: Mapping[str, Any], extension: Extension, *, limit: int, length: int
) -> EnginePrediction:
    """Predict the factors that an engine computes with, from a checkpoint's ``config.json``.

    Args:
        engine: Name of the engine, a key of `ENGINES`.
        config: The checkpoint's ``config.json``.
        extension: Factors that the checkpoint is made for.
        limit: Maximum length in tokens that the engine is launched with; some engines take none.
        length: Length of the sequence in tokens.

    Raises:
        LongRopeError: The engine is unknown, or the config has no longrope factors.
    """
    _check_engine(engine)
    row, configured, model_type = ENGINES[engine], extension_in_config(config), config.get("model_type", "?")
    yarn = yarn_scaling(text_fields(config)) is not None
    rule = row.rule(model_type, yarn=yarn)
    if rule is None:
        fault = f"what {engine} does with model type {model_type!r} is not known"
        return EnginePrediction(engine, length, "unknown", None, (fault,))
    if isinstance(rule, str):
        return EnginePrediction(engine, length, "refused", None, (f"model type {model_type!r}: {engine} {rule}",))
    refusal = _refuse_length(engine, configured.length, limit, length)
    if refusal:
        return EnginePrediction(engine, length, "refused", None, (refusal,))
    limit = min(limit, configured.length) if row.beyond == "cut" else limit
    name, scaling = (_read_yarn if yarn else _choose)(row, rule, config, limit, length)
    subject = f"model type {model_type!r}: {engine}" if rule is PLAIN else engine
    departures = [*_departures(subject, name, scaling, extension, length)]
    if name == "none" and rule is not PLAIN:
        departures.append(f"{engine} reads {' or '.join(row.fields)} alone, and config.json has no factors there")
    if yarn:  # it has one set, so that nothing is chosen in serving
        return EnginePrediction(engine, length, name, scaling, tuple(departures))
    if length == configured.rope.original_length + 1 and rule.slip:
        departures.append(f"{engine}: {rule.slip}")
    two_sets = not np.allclose(configured.short.factors, configured.long.factors)
    cautions = [f"{engine}: {rule.caution}"] if two_sets and rule.caution else []
    if rule.options:
        cautions.append(f"{engine} needs {rule.options}: it cannot compile how transformers chooses the set")
    return EnginePrediction(engine, length, name, scaling, tuple(departures), tuple(cautions))


def predict_ends(engine: str, config: Mapping[str, Any], extension: Extension) -> list[EnginePrediction]:
    """Predict an engine that is launched for L, at L0 and at L tokens."""
    lengths = sorted({extension.rope.original_length, extension.length})
    return [predict(engine, config, extension, limit=extension.length, length=length) for length in lengths]


def _refuse_length(engine: str, longest: int, limit: int, length: int) -> str:
    """Return the reason why an engine refuses a launch or a sequence; empty if it runs both."""
    row = ENGINES[engine]
    if row.beyond == "refuse" and limit > longest:
        return f"{engine} does not start for {limit:,} tokens: max_position_embeddings is {longest:,}"
    accepted = min(limit, longest) if row.beyond == "cut" else limit
    if row.takes_limit and length > accepted:
        return f"{engine} takes sequences of up to {accepted:,} tokens when launched for {limit:,}"
    return ""


def _choose(row: Engine, rule: Rule, config: Mapping[str, Any], limit: int, length: int) -> tuple[str, Scaling]:
    """Return the name of the set that an engine computes with, and the set with the engine's attention factor."""
    scaling, configured = rope_scaling(text_fields(config), row.fields), extension_in_config(config)
    name = "none" if scaling is None else rule.choice(configured.rope.original_length, limit, length)
    if scaling is None or name == "none":
        return "none", Scaling.identity(configured.rope)
    chosen = configured.short if name == "short" else configured.long
    return name, replace(chosen, attention_factor=rule.attention(scaling, configured, name, limit))


def _read_yarn(row: Engine, rule: Rule, config: Mapping[str, Any], limit: int, length: int) -> tuple[str, Scaling]:
    """Return ``long`` and the factors of a YaRN, or ``none`` or ``other`` and those that an engine makes of it."""
    configured, scaling = extension_in_config(config), yarn_scaling(text_fields(config), row.fields)
    if scaling is None or rule is PLAIN:
        return "none", Scaling.identity(configured.rope)
    read = row.yarn.reading(scaling, configured.rope, configured.length, limit)
    same = np.allclose(read.factors, configured.long.factors, rtol=1e-6)
    return "none" if read.is_identity else "long" if same else "other", read


def _departures(subject: str, name: str, scaling: Scaling, extension: Extension, length: int) -> Iterable[str]:
    """Yield each difference between a set of factors and the one that a sequence of some length should have."""
    due = extension.at(length)
    one_set = np.allclose(extension.short.factors, extension.long.factors, rtol=1e-6)
    due_name = "checkpoint's" if one_set else "long ones" if due is extension.long else "short ones"
    others = {"none": "no factors at all", "other": "factors of its own"}
    factors = others.get(name, f"the {name} factors")
    if not np.allclose(scaling.factors, due.factors, rtol=1e-6):
        yield f"{subject} uses {factors} at {length:,} tokens, where the {due_name} belong"
    elif not np.isclose(scaling.attention_factor, due.attention_factor, rtol=1e-6):
        yield (
            f"{subject} uses an attention factor of {scaling.attention_factor:.6g} at {length:,} tokens, where "
            f"{due.attention_factor:.6g} belongs"
        )
    if length > extension.length:
        yield f"the checkpoint is made for up to {extension.length:,} tokens"
