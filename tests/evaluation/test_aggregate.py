from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longrope.evaluation import aggregate
from longrope.evaluation.measurements import Measurement
from longrope.evaluation.runner import Candidate, SampleStore, fill
from longrope.scaling import Scaling
from longrope.storage.jsonl import JsonlFile

ROW = Candidate("model")


def part(name: str, values: Sequence[Any]) -> Measurement:
    """A part that measures these values."""
    return Measurement(name, len(values), 1, lambda _, cells: ((cell, values[cell]) for cell in cells))


def measured(*parts: Measurement) -> SampleStore:
    """The cells of `ROW`."""
    cells = SampleStore()
    fill(cells, {"row": ROW}, parts, lambda _: (None, None))  # pyright: ignore[reportArgumentType]
    return cells


def test_perplexity_is_of_the_mean_over_documents() -> None:
    texts = part("texts", [{"lengths": {"8": math.log(2), "16": 1.0}}, {"lengths": {"8": math.log(8), "16": math.nan}}])
    short, long = aggregate.perplexities(measured(texts), ROW, {"books": texts})
    assert (short["corpus"], short["length"], long["length"]) == ("books", 8, 16)
    assert short["perplexity"] == pytest.approx(4)
    assert short["standard_error"] == pytest.approx(4 * math.log(2))  # of ln 2 and ln 8: half their distance
    assert math.isnan(long["perplexity"])


def test_positions_are_the_means_between_borders() -> None:
    texts = part("texts", [{"positions": [1.0, 2.0]}, {"positions": [3.0, 4.0]}])
    cells = aggregate.positions(measured(texts), ROW, {"books": texts}, 3)
    assert [(cell["start"], cell["end"], cell["loss"], cell["standard_error"]) for cell in cells] == [
        (1, 2, 2.0, pytest.approx(1.0)),
        (2, 3, 3.0, pytest.approx(1.0)),
    ]


def test_key_tokens_of_all_documents_count_alike() -> None:
    """One document has three of them, one has one, one has none: not the mean of the documents' means."""
    texts = part("texts", [{"key": math.log(2)}, {"key": math.log(32)}, {"key": None}])
    chosen = {"books": {0: [1, 2, 3], 1: [4], 2: []}}
    (cell,) = aggregate.key_tokens(measured(texts), ROW, {"books": texts}, chosen, 11, "yarn")
    assert cell["perplexity"] == pytest.approx((2**3 * 32) ** (1 / 4))
    assert cell["share"] == pytest.approx(4 / 30)
    (cell,) = aggregate.key_tokens(measured(texts), ROW, {"books": texts}, {"books": {0: [], 1: [], 2: []}}, 11, "yarn")
    assert math.isnan(cell["perplexity"])
    assert cell["share"] == 0


def test_retrieval_by_depth() -> None:
    trials = [
        {"depth": 0.0, "score": 1.0, "choice": True, "choices": 4},
        {"depth": 0.5, "score": 0.0, "choice": None, "choices": 4},
        {"depth": 0.0, "score": 0.5, "choice": False, "choices": 4},
        {"depth": 0.0, "score": 0.0, "choice": None, "choices": 4},
    ]
    task = part("passkey", trials)
    front, middle = aggregate.retrieval(measured(task), ROW, {("passkey", 512): task})
    assert front == {
        "task": "passkey",
        "length": 512,
        "depth": 0.0,
        "score": 0.5,
        "standard_error": pytest.approx(np.std([1, 0.5, 0], ddof=1) / 3**0.5),
        "choice": 0.5,  # of those in which there was one
        "chance": 0.25,
        "trials": 3,
    }
    assert (middle["choice"], middle["chance"], middle["trials"]) == (None, None, 1)
    assert math.isnan(middle["standard_error"])


def perplexity(value: float | None, *losses: float, length: int = 256, corpus: str = "books") -> dict[str, Any]:
    return {"corpus": corpus, "length": length, "perplexity": value, "losses": losses}


def test_differences_are_from_original_and_yarn_and_from_no_row_to_itself() -> None:
    found = aggregate.differences(
        {
            "original": [perplexity(4.0, 1.0, 2.0)],
            "yarn": [perplexity(4.0, 1.5, 2.5)],
            "searched": [perplexity(4.0, 0.9, 1.8)],
        }
    )
    assert {name: [one["against"] for one in cells] for name, cells in found.items()} == {
        "original": ["yarn"],
        "yarn": ["original"],
        "searched": ["original", "yarn"],
    }
    against_original = found["searched"][0]
    assert against_original["percent"] == pytest.approx(100 * (math.exp(-0.15) - 1))
    assert (against_original["wins"], against_original["losses"], against_original["length"]) == (2, 0, 256)


def test_the_short_context_is_compared_at_l0_on_the_first_corpus() -> None:
    rows = {
        "original": [perplexity(4.0), perplexity(99.0, length=512), perplexity(8.0, corpus="code")],
        "searched": [perplexity(5.0), perplexity(1.0, length=512), perplexity(1.0, corpus="code")],
        "broken": [perplexity(math.nan), perplexity(1.0, length=512), perplexity(1.0, corpus="code")],
    }
    assert aggregate.short_context(rows, 256) == {"searched": pytest.approx(25.0)}
    assert aggregate.short_context(rows, 128) == {}
    del rows["original"]
    assert aggregate.short_context(rows, 256) == {}


def test_only_what_is_missing_is_measured_and_equal_factors_once(tmp_path: Path) -> None:
    opened: list[str] = []
    seen: list[list[int]] = []

    def open_model(name: str) -> Any:
        opened.append(name)
        return None, None

    def measure(_: Any, cells: Sequence[int]) -> Any:
        seen.append([*cells])
        return ((cell, float(cell)) for cell in cells)

    three = Measurement("three", 3, 10, measure)
    rows = {name: Candidate("model", Scaling([2.0, 2.0], scheme=name)) for name in ("pi", "the same by another name")}
    path = tmp_path / "cells.jsonl"
    with closing(JsonlFile(path, {}, of="a test", resume=False)) as lines:
        SampleStore(lines).add(rows["pi"], three, 1, math.inf)
    with closing(JsonlFile(path, {}, of="a test", resume=True)) as lines:
        cells, told = SampleStore(lines), []
        fill(cells, rows, [three], open_model, lambda *line: told.append(line))
        assert cells.of(rows["pi"], three) == [0.0, None, 2.0]  # what is not finite is nothing
    assert (seen, opened) == ([[0, 2]], ["model"])
    assert (told[0], told[-1]) == ((10, 30, "1/1 pi: three"), (30, 30, "1/1 pi: three"))
    with closing(JsonlFile(path, {}, of="a test", resume=True)) as lines:
        fill(SampleStore(lines), rows, [three], open_model)
    assert opened == ["model"]
