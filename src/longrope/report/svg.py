"""Pictures as SVG text for a page, and as SVG and PNG files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from longrope.report.style import config
from longrope.storage.atomic import write_bytes, write_text

if TYPE_CHECKING:
    import altair as alt

SVG = "http://www.w3.org/2000/svg"
NOT_DATA = ("axis", "legend", "title", "group mark container", "header")
TO_READERS_ONLY = ("aria-label", "aria-hidden", "aria-roledescription", "role", "pointer-events", "class")


def inline_svg(chart: alt.TopLevelMixin, key: str, title: str) -> str:
    """Return an ``svg`` element in the colours of the page. Every data mark has its numbers as a tooltip.

    Args:
        chart: An altair chart whose marks have descriptions.
        key: Prefix of all ids, which must be unique in the page.
        title: Title of the picture for screen readers, which find the numbers in a table.
    """
    root = ElementTree.fromstring(_render(chart))
    for element in list(root.iter()):
        label, kind = element.get("aria-label"), element.get("aria-roledescription")
        for name in TO_READERS_ONLY:
            element.attrib.pop(name, None)
        for name, value in element.attrib.items():
            element.set(name, value.replace("url(#", f"url(#{key}-"))
        if "id" in element.attrib:
            element.set("id", f"{key}-{element.get('id')}")
        if label and kind and kind not in NOT_DATA:
            tip = ElementTree.Element(f"{{{SVG}}}title")
            tip.text = label
            element.insert(0, tip)
    root.set("role", "img")
    root.set("aria-label", title)
    ElementTree.register_namespace("", SVG)
    return ElementTree.tostring(root, encoding="unicode")


def save(chart: alt.TopLevelMixin, path: Path) -> None:
    """Write a picture on a white background. The suffix decides the format.

    Args:
        chart: An altair chart.
        path: Path that ends in .svg or .png.

    Raises:
        LongRopeError: If the file cannot be written.
    """
    if path.suffix == ".svg":
        write_text(path, _render(chart, background="white"))
        return
    picture = io.BytesIO()
    _styled(chart, background="white").save(picture, format="png", ppi=144)
    write_bytes(path, picture.getvalue())


def _render(chart: alt.TopLevelMixin, **options: Any) -> str:
    text = io.StringIO()
    _styled(chart, **options).save(text, format="svg")
    return text.getvalue()


def _styled(chart: Any, **options: Any) -> Any:
    return chart.configure(**config() | options)
