"""The space of a search as its options say, and the candidates in it that are chosen beforehand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from longrope.checks import as_list, to_python
from longrope.formats.load_factors import load_factors
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import attention_factor, scheme
from longrope.search.method import Method
from longrope.search.options import SearchOptions
from longrope.search.space import START_TOKENS, Space


def make_space(rope: Rope, length: int, method: Method, options: SearchOptions) -> Space:
    """Return the space of a search.

    Raises:
        LongRopeError: The length, the attention factor or the parametrization does not suit the rope.
    """
    start_tokens = to_python(options.start_tokens)
    attention = "su" if options.attention == "search" else str(options.attention)
    return method.make_space(
        rope,
        length,
        attention_factor=attention_factor(attention, rope, length),
        search_attention=options.attention == "search",
        start_tokens=START_TOKENS if start_tokens is True else as_list(start_tokens or 0),
        parametrization=options.parametrization or method.parametrization,
    )


def make_starts(space: Space, method: Method, options: SearchOptions) -> list[Scaling]:
    """Return the schemes and factors to start from; of an extension, its long factors.

    Raises:
        LongRopeError: A file of factors cannot be read.
    """
    starts = make_schemes(method.schemes if options.schemes is None else options.schemes, space, options)
    if options.keep_short is not None:  # where the attention factor is 1, these keep every limit
        starts.append(_candidate(Scaling.identity(space.rope), space, options))
    for value in options.factors:
        factors = load_factors(value) if isinstance(value, (str, Path)) else value
        starts.append(_candidate(factors.long if isinstance(factors, Extension) else factors, space, options))
    return starts


def make_schemes(names: Iterable[str], space: Space, options: SearchOptions) -> list[Scaling]:
    """Return the factors of schemes, which may win a search."""
    return [_candidate(scheme(name, space.rope, space.length), space, options) for name in names]


def _candidate(scaling: Scaling, space: Space, options: SearchOptions) -> Scaling:
    """Return a scaling for the target length, with the attention factor that the options decide; else with its own."""
    attention = space.attention_factor if options.decides_attention else scaling.attention_factor
    return replace(scaling, length=space.length, attention_factor=attention)
