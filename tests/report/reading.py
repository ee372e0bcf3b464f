"""What a page holds, read as a browser reads it: tables by the figure's id, and tags."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "br"}


class Reader(HTMLParser):
    """Attributes:
    tables: cells as text, the row of headings first, by the figure's id.
    tags: name and attributes of every element.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.key, self.cell = "", None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "figure":
            self.key = found["id"]
            self.tables[self.key] = []
        if tag == "tr":
            self.tables[self.key].append([])
        if tag in ("td", "th"):
            self.cell = ""

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "elements are nested"
        if tag in ("td", "th"):
            self.tables[self.key][-1].append(self.cell)
            self.cell = None
