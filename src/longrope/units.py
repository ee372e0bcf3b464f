"""Lengths in tokens, written as 16k or 2m."""

from __future__ import annotations

import re
from typing import Any

from longrope.checks import as_list, whole
from longrope.errors import LongRopeError

LENGTH_UNITS = {"g": 2**30, "m": 2**20, "k": 2**10, "": 1}


def parse_length(text: str, name: str = "length") -> int:
    """Parse a length in tokens: k is 1024, m is 1024², g is 1024³.

    >>> parse_length("16k"), parse_length("2m"), parse_length("1.5K"), parse_length("16384")
    (16384, 2097152, 1536, 16384)
    """
    match = re.fullmatch(r"(\d{1,12})(?:\.(\d{1,6}))?([kmg]?)", text.strip().lower())
    digits, decimals, unit = match.groups("") if match else ("0", "", "")
    tokens, rest = divmod(int(digits + decimals) * LENGTH_UNITS[unit], 10 ** len(decimals))
    if tokens < 2 or rest:
        raise LongRopeError(f"{name} = {text!r} is not a number of tokens; write 16384, 16k or 2m")
    return tokens


def token_count(name: str, value: Any, least: int = 2) -> int:
    """Return a number of tokens, which may be text such as ``2m``, or a float such as 1e6.

    Args:
        name: Field name, for the error message.
        value: The number of tokens.
        least: Smallest number that is allowed.

    Raises:
        LongRopeError: The value is something else.
    """
    return parse_length(value, name) if isinstance(value, str) else whole(name, value, least)


def token_counts(name: str, values: Any, least: int = 2) -> list[int]:
    """Return numbers of tokens in their order: a list, an array, a tensor, text such as ``4k,8k``, or a single number.

    Args:
        name: Field name, for the error message.
        values: The numbers of tokens.
        least: Smallest number that is allowed.

    Raises:
        LongRopeError: A value is something else.

    >>> token_counts("lengths", "4k,8k"), token_counts("lengths", 64), token_counts("lengths", [64, 128.0, "1k"])
    ([4096, 8192], [64], [64, 128, 1024])
    """
    if isinstance(values, str):
        return [token_count(name, value, least) for value in values.split(",")]
    return [token_count(f"{name}[{index}]", value, least) for index, value in enumerate(as_list(values))]


def parse_percent(text: str, name: str) -> float:
    """Read a share, such as ``1%`` or ``0.01``.

    >>> parse_percent("1%", "--keep-short")
    0.01

    Args:
        text: A number, or a number of percent with the sign.
        name: Name of the value, for errors.

    Raises:
        LongRopeError: If the text is neither, or is a share of 1 or more: ``5`` without the sign is hardly 500%.
    """
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise LongRopeError(f"{name} = {text!r}: not a share. Give a number of percent such as 1%.") from None
    if share >= 1 and not text.endswith("%"):
        raise LongRopeError(f"{name} = {text!r}: a share of 1 is 100%. Write {text}% for that many percent.")
    return share


def parse_lengths(text: str, name: str = "lengths") -> list[int]:
    """Parse lengths in tokens, separated by commas, and return them in ascending order."""
    return sorted({parse_length(length, name) for length in text.split(",")})


def short_length(tokens: int) -> str:
    """Return the shortest notation of a length in tokens.

    >>> short_length(16384), short_length(2097152), short_length(1000)
    ('16k', '2m', '1000')
    """
    unit = next(unit for unit, size in LENGTH_UNITS.items() if tokens % size == 0)
    return f"{tokens // LENGTH_UNITS[unit]}{unit}"
