"""What a release shows: the package page and the citation."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from repository_scripts import script

import longrope

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = "https://host.example/someone/longrope/blob/v1"


@pytest.fixture
def relative_links(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    yield script("release_check").relative_links
    sys.modules.pop("release_uses", None)


@pytest.mark.parametrize("files", [FILES, ""])
def test_the_package_page_has_no_relative_link(files: str, relative_links) -> None:
    assert len(relative_links(README)) > 30
    assert relative_links(script("package_page").page(README, files)) == []


def test_the_links_of_the_package_page_lead_to_the_files_of_the_repository() -> None:
    page = script("package_page").page(README, FILES)
    paths = re.findall(rf"{FILES.replace('blob', '(?:blob|raw)')}/([^)#\s]+)", page)
    assert len(paths) > 30
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert f"![The report of the demo]({FILES.replace('blob', 'raw')}/docs/images/demo-report.png)" in page


def test_a_page_without_an_address_has_the_words_of_the_links() -> None:
    page = script("package_page").page("See [the docs](docs/a.md), [PyPI](https://pypi.org) and [below](#below).", "")
    assert page == "See the docs, [PyPI](https://pypi.org) and [below](#below)."


def test_the_citation_names_this_version() -> None:
    assert f"\nversion: {longrope.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
