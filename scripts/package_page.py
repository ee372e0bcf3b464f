"""Hatchling hook: the README and the links of the package page on PyPI, which has no files beside it.

In GitHub Actions, ``GITHUB_SERVER_URL`` and ``GITHUB_REPOSITORY`` name the repository. Relative links then
lead to its files at the tag of the version. Without a repository, links become their text and images are left out, so
that the page never has a broken link.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


class PackagePage(MetadataHookInterface):
    """Metadata hook that fills in the README and the links of the page."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add ``readme`` and ``urls`` to the metadata of the package."""
        server, name = (os.environ.get(f"GITHUB_{field}", "") for field in ("SERVER_URL", "REPOSITORY"))
        files = f"{server}/{name}/blob/v{metadata['version']}" if server and name else ""
        readme = (Path(self.root) / "README.md").read_text("utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": page(readme, files)}
        metadata["urls"] = {"Source": f"{server}/{name}", "Changelog": f"{files}/CHANGELOG.md"} if files else {}


def page(readme: str, files: str) -> str:
    """Return the README with absolute links.

    >>> page("![Chart](docs/chart.svg) [docs](docs/a.md#b)", "https://host/me/it/blob/v1")
    '![Chart](https://host/me/it/raw/v1/docs/chart.svg) [docs](https://host/me/it/blob/v1/docs/a.md#b)'
    >>> page("![Chart](docs/chart.svg) [docs](docs/a.md#b)", "")
    ' docs'

    Args:
        readme: Text in Markdown.
        files: Address of the repository's files; empty if not known.
    """

    def absolute(link: re.Match[str]) -> str:
        image, text, path = link.groups()
        if not files:
            return "" if image else text
        folder = files.replace("/blob/", "/raw/") if image else files
        return f"{image}[{text}]({folder}/{path})"

    return RELATIVE.sub(absolute, readme)
