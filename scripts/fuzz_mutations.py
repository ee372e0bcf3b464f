"""Mutations that keep a file plausible: exchange words of a text, replace numbers of a binary file."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

Mutate = Callable[[bytes, int], bytes]
TOKEN = re.compile(rb'"(?:[^"\\\n]|\\.)*"|[-+]?\d[\w.+-]*|\w+|\s+|.', re.DOTALL)
ODD = [
    b"0",
    b"-1",
    b"1e400",
    b"1" * 400,
    b"NaN",
    b"-Infinity",
    b"1e-320",
    b"2.5",
    b"true",
    b"null",
    b"[]",
    b"{}",
    b'""',
]
ODD += [
    b'"\\ud800"',
    b"[" * 3000,
    b'{"a":' * 2000,
    b'"\xff"',
    b"\0",
    b"18446744073709551616",
    b"'x'",
    b"\r",
    b"[[1.0]]",
]
WORDS = [0, 1, 2, 8, 9, 2**31 - 1, 2**32 - 1, 2**60, 2**63, 2**64 - 1]


def mutate_tokens(plain: Mutate, data: bytes, size: int, seed: int) -> bytes:
    """Exchange, repeat, drop or swap words of the text, with probability 1/2; else mutate bytes."""
    rng = random.Random(seed)
    tokens = TOKEN.findall(data)
    if rng.random() < 0.5 or not tokens:
        return plain(data, size)
    for _ in range(rng.choice((1, 1, 2, 4))):
        i, j = rng.randrange(len(tokens)), rng.randrange(len(tokens))
        tokens[i] = rng.choice((b"", tokens[i] * 2, tokens[j], rng.choice(ODD), rng.choice(ODD)))
    return b"".join(tokens)[:size]


def mutate_words(plain: Mutate, data: bytes, size: int, seed: int) -> bytes:
    """Replace four or eight bytes by a number, with probability 1/2; else mutate bytes."""
    rng, width = random.Random(seed), random.Random(seed).choice((4, 8))
    if rng.random() < 0.5 or len(data) < 24:
        return plain(data, size)
    at, number = rng.randrange(len(data) - width), rng.choice(WORDS) % 2 ** (8 * width)
    return (data[:at] + number.to_bytes(width, "little") + data[at + width :])[:size]
