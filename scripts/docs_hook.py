"""MkDocs hook: a page may link to a file elsewhere in the repository; the site then holds a copy of it.

On GitHub such a link (``../benchmarks/results/demo.json``) works as it is. Here it is turned to ``files/…``. A link to
a file that is not there stays, and the strict build ends with it.
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
    """The path in the repository of a link that leaves the folder of the docs; None if it stays inside.

    >>> outside("guides/gpu.md", "../../plans/tiny.toml"), outside("guides/gpu.md", "../scale.md")
    ('plans/tiny.toml', None)
    """
    path = normpath(PurePosixPath("docs") / PurePosixPath(page).parent / link)
    return None if path.startswith(("docs/", "..")) else path


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Turn the links of a page that leave the docs to copies, and add these to the site."""
    root, here = Path(config["config_file_path"]).parent, page.file.src_uri

    def turn(match: re.Match[str]) -> str:
        path = outside(here, match[0])
        if path is None or not (root / path).is_file():
            return match[0]
        copy = f"{COPIES}/{path}" + ".txt" * path.endswith(".md")  # MkDocs would take it for a page
        if files.get_file_from_path(copy) is None:
            files.append(File.generated(config, copy, abs_src_path=str(root / path)))
        return relpath(copy, PurePosixPath(here).parent)

    return LINK.sub(turn, markdown)
