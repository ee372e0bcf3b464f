"""Open a GGUF file, and read the keys of its architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longrope.errors import LongRopeError
from longrope.formats.gguf_header import GgufHeader, read_header

ARCHITECTURE = "general.architecture"


def needs_gguf() -> None:
    """Raise unless the package gguf is installed.

    Raises:
        LongRopeError: The package is missing.
    """
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise LongRopeError("GGUF files need the package gguf: pip install gguf") from None


def architecture_keys(header: GgufHeader) -> tuple[str, dict[str, Any]]:
    """Return the architecture of a GGUF file, and its keys without the prefix of that name.

    Raises:
        LongRopeError: The file has no architecture, or a key is not text where it should be.
    """
    if ARCHITECTURE not in header.keys:
        raise LongRopeError(f"{header.path} has no key {ARCHITECTURE}: it is not a language model")
    architecture = str(_decoded(ARCHITECTURE, header.keys[ARCHITECTURE], header.path))
    prefix = f"{architecture}."
    return architecture, {
        name.removeprefix(prefix): _decoded(name, value, header.path)
        for name, value in header.keys.items()
        if name.startswith(prefix)
    }


def open_gguf(path: Path) -> Any:
    """Open a GGUF file with the reader of the package gguf.

    Raises:
        LongRopeError: The file is not a complete GGUF file, or the package gguf is missing.
    """
    needs_gguf()
    from gguf import GGUFReader

    read_header(path)  # the package's reader trusts a damaged header and may read for hours
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise LongRopeError(
            f"{path} is not a complete GGUF file ({str(error).partition(chr(10))[0]}); fetch it again"
        ) from None


def _decoded(name: str, value: Any, path: Path) -> Any:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        raise LongRopeError(f"{path}: {name} is not text; the file is damaged: fetch it again") from None
