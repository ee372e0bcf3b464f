"""Refuse one part of a GGUF file that was split, as it holds a part of the weights only."""

from __future__ import annotations

import re
from pathlib import Path
from shlex import quote

from longrope.errors import LongRopeError
from longrope.formats.gguf_header import read_header

PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
NUMBER, COUNT = "split.no", "split.count"


def refuse_split(path: Path) -> None:
    """Raise if a GGUF file is one of several parts, by its header or, if that has no ``split.count``, by its name.

    Raises:
        LongRopeError: The file is a part, is not a complete GGUF file, or cannot be read.
    """
    keys, match = read_header(path).keys, PART.fullmatch(path.name)
    if COUNT in keys:
        count = keys[COUNT]
        number = keys.get(NUMBER, 0) + 1
    elif match:
        count, number = int(match["count"]), int(match["number"])
    else:
        return
    if count <= 1:
        return
    stem = match["stem"] if match else path.stem
    first = str(path.with_name(f"{stem}-00001-of-{count:05}.gguf")) if match else "FIRST_PART.gguf"
    raise LongRopeError(
        f"model = {str(path)!r}: this is part {number} of {count} of a split GGUF file and lacks the weights of the "
        f"others. Join the parts with llama.cpp: llama-gguf-split --merge {quote(first)} {quote(stem)}.gguf"
    )
