"""The cases of ``benchmarks/smollm2.py``: a target length, the test documents and the questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
KINDS = ("recall", "niah_single_1")  # of questions


@dataclass(frozen=True)
class Case:
    """A target length, its test documents and the questions about them.

    Args:
        name: Name in the command and of the results files.
        length: Target length in tokens.
        lengths: Lengths in tokens whose perplexity is reported.
        documents: Number of test documents of a corpus.
        lines: Number of planted lines of each kind in a document.
        questions: Number of questions of each kind about a document, by the length in tokens at which they are asked.
        against: Closed forms that every row is compared with.
        searches: Most token-evaluations of each search, by its row; None for the method's own.
    """

    name: str
    length: int
    lengths: tuple[int, ...]
    documents: int
    lines: int
    questions: dict[int, int]
    against: tuple[str, ...]
    searches: dict[str, str | None]

    def search(self, row: str = "searched") -> Path:
        """Folder of a search."""
        kind = row.replace("searched", "search").replace("_", "-")
        return RESULTS / f"smollm2-{self.name}-{kind}"

    @property
    def record(self) -> Path:
        """Results file of the tests."""
        return RESULTS / f"smollm2-{self.name}-tests.json"


CASES = {
    "16k": Case(
        "16k",
        16384,
        (2048, 4096, 8192, 12288, 16384),
        documents=6,
        lines=16,
        questions={8192: 8, 12288: 8, 16384: 8},
        against=("yarn", "tailspline"),
        searches={"searched": None, "searched_yarn": "250k"},
    ),
    "32k": Case(
        "32k",
        32768,
        (2048, 4096, 8192, 16384, 24576, 32768),
        documents=3,
        lines=32,
        questions={8192: 8, 24576: 16, 32768: 16},
        against=("yarn", "tailspline", "bm"),
        searches={"searched": "600k", "searched_yarn": "250k"},
    ),
}
