"""Write longrope's own files: completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import time
from pathlib import Path

from longrope.errors import LongRopeError

WAITS = (0.05, 0.1, 0.2, 0.4, 0.8) if os.name == "nt" else ()  # seconds between tries
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cannot_write(path: Path, error: OSError) -> LongRopeError:
    """Return the error for a file or folder that the system refused to write."""
    remedy = "make room and try again" if error.errno in DISK_FULL else "choose another output with -o"
    return LongRopeError(f"cannot write {path}: {error.strerror or error}; {remedy}")


def dumps(data: object) -> str:
    """Return indented JSON; a number that is not finite becomes null."""
    return json.dumps(replace_non_finite(data), indent=1, allow_nan=False) + "\n"


def replace_non_finite(data: object) -> object:
    """Return JSON values; a number that is not finite becomes null."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: replace_non_finite(value) for key, value in data.items()}
    return [replace_non_finite(value) for value in data] if isinstance(data, (list, tuple)) else data


def _replace(temporary: Path, path: Path) -> None:
    """Rename a file to another's name; Windows refuses it while a virus scanner or an indexer has the other open."""
    for seconds in WAITS:
        with contextlib.suppress(PermissionError):
            temporary.replace(path)
            return
        time.sleep(seconds)
    temporary.replace(path)


def apply_umask(folder: Path) -> None:
    """Give the weights in a folder the permissions of other files; safetensors writes them for their owner alone."""
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(OSError):  # a file system without permissions
            path.chmod(folder.stat().st_mode & 0o666)


def write_json(path: str | os.PathLike[str], data: object) -> None:
    """Write the JSON of `dumps` with `write_text`."""
    write_text(path, dumps(data))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write text in UTF-8 with `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file completely or not at all: write a temporary file next to it, sync it, then rename it.

    The sync takes some milliseconds. After a power failure, a file with the final name is therefore complete.

    Raises:
        LongRopeError: The file cannot be written.
    """
    target = Path(os.path.realpath(path))  # a link stays one
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _replace(temporary, target)
    except OSError as error:
        raise cannot_write(Path(path), error) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
