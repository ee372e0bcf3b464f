"""Charts as SVG text for a page, and as SVG and PNG files."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from longrope.errors import LongRopeError
from longrope.files import write_text
from longrope.report.looks import config

if TYPE_CHECKING:
    import altair as alt

SVG = "http://www.w3.org/2000/svg"
NOT_DATA = ("axis", "legend", "title", "group mark container", "header")
TO_READERS_ONLY = ("aria-label", "aria-hidden", "aria-roledescription", "role", "pointer-events", "class")


def inline_svg(chart: alt.TopLevelMixin, key: str, title: str) -> str:
    """An ``svg`` element in the colours of the page, every data mark with its numbers as a tooltip.

    Args:
        chart: of altair, its marks described.
        key: goes in front of ids, which are the page's.
        title: of the whole picture, for screen readers; the numbers are for them in a table.
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
    """Write a picture on white ground, whole or not at all; the suffix decides the format.

    Args:
        chart: of altair.
        path: ends in .svg or .png.

    Raises:
        LongRopeError: if it has another suffix, or its place cannot be written.
    """
    if path.suffix not in (".svg", ".png"):
        raise LongRopeError(f"{path}: a picture ends in .svg or .png")
    if path.suffix == ".svg":
        write_text(path, _render(chart, background="white"))
        return
    picture = io.BytesIO()
    _styled(chart, background="white").save(picture, format="png", ppi=144)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(_packed(picture.getvalue()))
        temporary.replace(path)
    except OSError as error:
        raise LongRopeError(f"cannot write {path}: {error.strerror}; choose another output") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _packed(png: bytes) -> bytes:
    """The same pixels in a fifth of the bytes: the library compresses for speed."""
    place, kept, pixels = 8, [], b""
    while place < len(png):
        (size,), kind = struct.unpack(">I", png[place : place + 4]), png[place + 4 : place + 8]
        if kind == b"IDAT":
            pixels += png[place + 8 : place + 8 + size]
        else:
            kept.append(png[place : place + 12 + size])
        place += 12 + size
    data = b"IDAT" + zlib.compress(zlib.decompress(pixels), 9)
    packed = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return b"".join([png[:8], *kept[:-1], packed, kept[-1]])


def _render(chart: alt.TopLevelMixin, **options: Any) -> str:
    text = io.StringIO()
    _styled(chart, **options).save(text, format="svg")
    return text.getvalue()


def _styled(chart: Any, **options: Any) -> Any:
    return chart.configure(**config() | options)
