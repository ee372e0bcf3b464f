"""A fingerprint of weights in a folder, which a later training may change under the same name."""

from __future__ import annotations

import hashlib
from pathlib import Path

from longrope.models.load_errors import BUILT_IN

BLOCKS, BYTES = 64, 256  # of each file


def weights_digest(name: str) -> str:
    """Return a fingerprint of a model's weights; empty for a built-in model or one of the hub.

    It covers the size of each file and some bytes in all parts of it, so that large weights take no time.

    Args:
        name: Name of the model, as for `longrope.load`.
    """
    path = Path(name)
    if name in BUILT_IN or not path.exists():
        return ""
    files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("*.bin")])
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as opened:
            for block in range(BLOCKS):
                opened.seek(block * size // BLOCKS)
                digest.update(opened.read(BYTES))
    return digest.hexdigest()[:16]


def weights_setting(name: str) -> dict[str, str]:
    """Return the fingerprint of a model's weights as a setting of a journal; nothing where it is empty."""
    digest = weights_digest(name)
    return {"weights": digest} if digest else {}
