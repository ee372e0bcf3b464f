"""Long documents on every machine with a Python: the source of its standard library."""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

# `encodings` is mostly generated charmap tables; `_sysconfigdata*` holds one machine's build flags.
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "ensurepip", "encodings"}
)
SKIPPED_MODULES = ("_sysconfigdata", "sitecustomize", "usercustomize")
# The salt was picked among the first few hundred so that both sides get documents of every size.
UNSEEN_SALT, UNSEEN_PERCENT = "longrope-40:", 30


def stdlib_documents(*, unseen: bool = False) -> list[tuple[str, str]]:
    """Return (name, text) of each package and top-level module of the running Python, sorted by name.

    A package is one document: its modules joined in path order. Files that are not UTF-8 are left out.

    Args:
        unseen: Whether to return only the documents that the reference model `tiny` was not trained on.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.py"), key=lambda path: path.parts):
        inner = path.relative_to(root)
        name = inner.parts[0].removesuffix(".py")
        if _is_library(inner, name):
            files.setdefault(name, []).append(path)
    names = sorted(name for name in files if is_unseen(name) or not unseen)
    documents = [(name, "\n".join(filter(None, map(_read, files[name])))) for name in names]
    return [(name, text) for name, text in documents if text]


def is_unseen(name: str) -> bool:
    """Return whether a document is reserved for evaluation, by a hash of its name: the same on all Python versions."""
    digest = hashlib.sha256((UNSEEN_SALT + name).encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < UNSEEN_PERCENT


def _is_library(inner: Path, name: str) -> bool:
    return name.isidentifier() and not name.startswith(SKIPPED_MODULES) and SKIPPED_FOLDERS.isdisjoint(inner.parts)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return ""


def default_data(model: str) -> str:
    """Return the default documents: this Python's library, or for ``tiny`` the part that it was not trained on."""
    return "stdlib:unseen" if model == "tiny" or Path(model).parts[-2:] == ("assets", "tiny") else "stdlib"
