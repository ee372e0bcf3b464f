"""What the options of ``longrope search`` stand for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from longrope.cli import options
from longrope.errors import LongRopeError
from longrope.units import parse_lengths

if TYPE_CHECKING:
    from longrope.rope import Rope
    from longrope.scaling import Scaling


def shorter(also: str, length: int) -> list[int]:
    """The other lengths of a search, which are not above its own.

    Raises:
        LongRopeError: if one is.
    """
    lengths = parse_lengths(also, "also")
    if max(lengths) > length:
        raise LongRopeError(f"also = {max(lengths)} is above length = {length}; give the largest as --length")
    return lengths


def parse_starts(text: str) -> list[str]:
    """Names of schemes, and paths of factors, by commas.

    Raises:
        LongRopeError: if one is neither.
    """
    from longrope.schemes import canonical

    parts = [part.strip() for part in text.split(",")]
    return [part if part and Path(part).exists() else canonical(part) for part in parts]


def start(name: str, rope: Rope, length: int) -> Scaling:
    """The factors that a search starts from: a scheme's, or a file's (the long ones of an extension)."""
    from longrope.scaling import Extension
    from longrope.schemes import is_scheme, scheme

    if is_scheme(name):
        return scheme(name, rope, length)
    found = options.read_factors(name)
    return found.long if isinstance(found, Extension) else found
