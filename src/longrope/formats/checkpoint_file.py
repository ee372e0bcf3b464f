"""A file of a checkpoint, in its folder or on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def find_file(name: str, file: str, **options: Any) -> Path | None:
    """Return a file of a folder or a hub model; None if it does not exist or cannot be fetched."""
    from transformers.utils.hub import cached_file

    quiet = ("gated_repo", "missing_entries", "connection_errors")
    options |= {f"_raise_exceptions_for_{kind}": False for kind in quiet}
    try:
        path = cached_file(name, file, **options)
    except (OSError, ValueError):
        return None
    return None if path is None else Path(path)
