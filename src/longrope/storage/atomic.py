"""Writing longrope's own files: whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from pathlib import Path

from longrope.errors import LongRopeError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cannot_write(path: Path, error: OSError) -> LongRopeError:
    """The error for a file or folder that the system refused to write."""
    remedy = "make room and try again" if error.errno in FULL else "choose another output with -o"
    return LongRopeError(f"cannot write {path}: {error.strerror or error}; {remedy}")


def dumps(data: object) -> str:
    """Indented JSON in which a number that is not finite is null."""
    return json.dumps(replace_non_finite(data), indent=1, allow_nan=False) + "\n"


def replace_non_finite(data: object) -> object:
    """JSON values in which a number that is not finite is null."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: replace_non_finite(value) for key, value in data.items()}
    return [replace_non_finite(value) for value in data] if isinstance(data, (list, tuple)) else data


def write_json(path: str | os.PathLike[str], data: object) -> None:
    """`write_text` of `dumps`."""
    write_text(path, dumps(data))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """`write_bytes` in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole or not at all: to a temporary name beside it, then renamed.

    It is synced before (some milliseconds): its name says that something is done, also after a power failure.

    Raises:
        LongRopeError: if the place cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
