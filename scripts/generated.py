"""Write a generated file of the documentation, or with ``--check`` only compare it."""

from __future__ import annotations

import sys
from pathlib import Path


def write_or_check(path: Path, text: str, script: str) -> int:
    """Write a file; with ``--check`` return 1 if it has another text, and name the script that writes it."""
    if "--check" not in sys.argv[1:]:
        path.write_text(text, encoding="utf-8")
        return 0
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return 0
    print(f"{path.name} is out of date. Run scripts/{script}", file=sys.stderr)
    return 1
