"""Tables and sentences of the pages, and the results files that they show."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def record(name: str) -> Any:
    """Return what a results file holds."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def page(name: str) -> str:
    """Return a page without its bold marks."""
    return (ROOT / name).read_text(encoding="utf-8").replace("**", "")


def row(*values: str) -> str:
    """Return a row of a table; an empty string is an empty field."""
    return "|" + "|".join(f" {value} " if value else " " for value in values) + "|"


def assert_table(name: str, rows: list[str]) -> None:
    """Assert that these rows, and no others, are one table of a page."""
    blocks = groupby(page(name).splitlines(), key=lambda line: line.startswith("|"))
    tables = [list(lines)[2:] for is_table, lines in blocks if is_table]
    present = {line for table in tables for line in table}
    missing = [line for line in rows if line not in present]
    assert rows in tables, f"{name} lacks {missing or 'a table of these rows alone'}; write:\n" + "\n".join(rows)


def assert_says(name: str, *sentences: str) -> None:
    """Assert that a page has these words, however its lines are broken."""
    text = " ".join(page(name).split())
    missing = [sentence for sentence in sentences if sentence not in text]
    assert not missing, f"{name} does not say: {missing}"


def extension() -> Any:
    """Return the results of the extension to 512 times the length.

    The stage for 131,072 tokens also serves 32,768, so its values there are kept once.
    """
    values = record("extension.json")
    for length in (32768, 131072):
        values["table"][f"staged, last stage {length}"] = values["table"][f"staged, fine-tuned {length}"]
    return values


def exact(results: Any, name: str, length: int) -> tuple[int, int]:
    """Return the exact answers to the questions of a length, and the number of these questions."""
    cells = [cell for cell in results["retrieval"][name] if cell["length"] == length]
    return round(sum(cell["score"] * cell["trials"] for cell in cells)), sum(cell["trials"] for cell in cells)


def perplexity_at(results: Any, name: str, length: int) -> Any:
    """Return the perplexity of a row of results at a length, with its standard error."""
    return next(measured for measured in results["perplexity"][name] if measured["length"] == length)
