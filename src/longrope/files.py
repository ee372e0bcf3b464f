"""Reading and writing longrope's own files."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from longrope.errors import LongRopeError
from longrope.rope import Extension, Scaling


def claim(path: Path, *, overwrite: bool, also: str = "") -> None:
    """Make sure, before any work, that an output may be written.

    Raises:
        LongRopeError: if it exists and ``overwrite`` is False, or its folder cannot be written; ``also`` is one
            more remedy to name.
    """
    if path.exists() and not overwrite and not (path.is_dir() and not any(path.iterdir())):
        raise LongRopeError(f"{path} exists; {also}replace it with --overwrite or choose another output with -o")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise LongRopeError(f"cannot write {path}: {error.strerror}; choose another output with -o") from None


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file whole or not at all: to a temporary name beside it, then renamed.

    Raises:
        LongRopeError: if the place cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise LongRopeError(f"cannot write {path}: {error.strerror}; choose another output with -o") from None


def load_factors(path: str | os.PathLike[str]) -> Scaling | Extension:
    """Read a scaling or an extension file.

    Raises:
        LongRopeError: if the file is missing or is neither.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        kind = json.loads(text).get("kind")
    except OSError as error:
        raise LongRopeError(f"cannot read the factors file {path}: {error.strerror}") from None
    except (ValueError, AttributeError):
        raise LongRopeError(f"{path} is no factors file: a longrope scaling or extension in JSON is expected") from None
    try:
        return Extension.from_json(text) if kind == "extension" else Scaling.from_json(text)
    except LongRopeError as error:
        raise LongRopeError(f"{path}: {error}") from None


def write_json(path: str | os.PathLike[str], data: object) -> None:
    """`write_text` of indented JSON; NaN is refused.

    Raises:
        LongRopeError: if the place cannot be written.
    """
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")
