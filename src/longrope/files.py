"""Reading and writing longrope's own files."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from pathlib import Path

from longrope.errors import LongRopeError


def claim(path: Path, *, overwrite: bool, folder: bool = False, also: str = "") -> None:
    """Make sure, before any work, that an output may be written.

    Args:
        path: of the output.
        overwrite: whether it may be there already.
        folder: whether it is a folder or a file; an empty folder may be there.
        also: one more remedy to name.

    Raises:
        LongRopeError: if it exists and may not, is a folder where a file is wanted or the other way round, or its
            place cannot be written.
    """
    try:
        if path.exists() and path.is_dir() != folder:
            raise LongRopeError(f"{path} is {'no' if folder else 'a'} folder; choose another output with -o")
        if path.exists() and not overwrite and not (folder and not any(path.iterdir())):
            raise LongRopeError(f"{path} exists; {also}replace it with --overwrite or choose another output with -o")
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise LongRopeError(f"cannot write {path}: {error.strerror}; choose another output with -o") from None


def dumps(data: object) -> str:
    """Indented JSON in which a number that is not finite is null."""
    return json.dumps(finite(data), indent=1, allow_nan=False) + "\n"


def finite(data: object) -> object:
    """JSON values in which a number that is not finite is null."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    return [finite(value) for value in data] if isinstance(data, (list, tuple)) else data


def write_json(path: str | os.PathLike[str], data: object) -> None:
    """`write_text` of `dumps`."""
    write_text(path, dumps(data))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """`write_bytes` in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole or not at all: to a temporary name beside it, then renamed.

    Raises:
        LongRopeError: if the place cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise LongRopeError(f"cannot write {path}: {error.strerror}; choose another output with -o") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
