"""Read factors from a file or folder in any known format."""

from __future__ import annotations

import json
import os
from pathlib import Path

from longrope.errors import LongRopeError
from longrope.formats.gguf import extension_of_gguf
from longrope.formats.hf_config import extension_of_config
from longrope.formats.microsoft_csv import scaling_of_table
from longrope.scaling import Extension, Scaling

FORMATS = (
    "longrope's scaling or extension (.json), a Hugging Face config.json or a folder with one, "
    "a table of microsoft/LongRoPE (.csv), or a .gguf file"
)
MARKS = ("rope_scaling", "rope_parameters", "model_type", "architectures")


def load_factors(path: str | os.PathLike[str]) -> Scaling | Extension:
    """Read factors: longrope's own, a checkpoint's config, microsoft/LongRoPE's table or a GGUF file (docs/reading.md).

    Args:
        path: File, or folder with an ``extension.json`` or else a ``config.json``.

    Returns:
        An extension, or a scaling from files without a model's geometry: longrope's own scalings and tables.

    Raises:
        LongRopeError: The file is missing, has another format, or has no scaling that factors can express.
    """
    path = Path(path)
    readers = {".csv": scaling_of_table, ".gguf": extension_of_gguf}
    try:
        if path.is_dir():
            plain = (path / "config.json").is_file() and not (path / "extension.json").is_file()
            path = path / ("config.json" if plain else "extension.json")
        return readers.get(path.suffix.lower(), _of_json)(path)
    except OSError as error:
        reason = f"cannot read the factors file {path}: {error.strerror}"
        raise LongRopeError(f"{reason}. Give a run folder, or a factors file that longrope scale writes.") from None


def load_extension(path: str | os.PathLike[str]) -> Extension:
    """Read an extension, as `load_factors` does.

    Args:
        path: File, or folder with an ``extension.json`` or else a ``config.json``.

    Raises:
        LongRopeError: As for `load_factors`, or the file holds one set of factors without a model's geometry.
    """
    scaling = load_factors(path)
    if not isinstance(scaling, Extension):
        raise LongRopeError(
            f"{path}: one set of factors without a model's geometry; an extension is needed here. "
            "Make one with longrope scale."
        )
    return scaling


def _of_json(path: Path) -> Scaling | Extension:
    unknown = LongRopeError(f"{path} is not a factors file; longrope reads {FORMATS}")
    try:
        content = path.read_bytes()
        text = content.decode(json.detect_encoding(content))  # Windows' shell writes UTF-16
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise unknown from None
    if not isinstance(data, dict):
        raise unknown
    try:
        if data.get("kind") in ("scaling", "extension"):
            return (Extension if data["kind"] == "extension" else Scaling).from_json(text)
        if any(mark in data for mark in MARKS):
            return extension_of_config(data)
    except LongRopeError as error:
        raise LongRopeError(f"{path}: {error}") from None
    raise unknown
