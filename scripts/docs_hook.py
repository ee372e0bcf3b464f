"""MkDocs hook: copy into the site the files outside of ``docs`` that a page links to.

On GitHub a link such as ``../benchmarks/results/demo.json`` works unchanged. On the site it leads to a copy in
``files/``. A link to a missing file stays, so that the strict build fails on it.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.structure.files import File

LINK = re.compile(r"(?<=\]\()(?P<up>(?:\.\./)+)(?P<path>[^)#\s]+)")
COPIES = "files"


def outside(page: str, link: str) -> str | None:
    """Return the path in the repository of a link that leaves ``docs``, or None if the link stays inside.

    >>> outside("guides/gpu.md", "../../plans/tiny.toml"), outside("guides/gpu.md", "../scale.md")
    ('plans/tiny.toml', None)
    """
    path = normpath(PurePosixPath("docs") / PurePosixPath(page).parent / link)
    return None if path.startswith(("docs/", "..")) else path


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Replace each link that leaves ``docs`` by a link to a copy, and add the copies to the site."""
    root = Path(config["config_file_path"]).parent
    source = page.file.src_uri

    def link_to_copy(match: re.Match[str]) -> str:
        path = outside(source, match[0])
        if path is None or not (root / path).is_file():
            return match[0]
        suffix = ".txt" if path.endswith(".md") else ""  # MkDocs would take a copied .md for a page
        copy = f"{COPIES}/{path}{suffix}"
        if files.get_file_from_path(copy) is None:
            files.append(File.generated(config, copy, abs_src_path=str(root / path)))
        return relpath(copy, PurePosixPath(source).parent)

    return LINK.sub(link_to_copy, markdown)
