"""The report as Markdown, CSV, JSON and text: the same numbers as on the page."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sample_runs
from reading import Reader

import longrope as lr
from longrope.errors import LongRopeError
from longrope.evaluation.registry import MEASUREMENTS
from longrope.report.formats import FORMATS, formatted
from longrope.report.load import LoadedRun, read_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedRun, ...]:
    return read_runs([sample_runs.write_run(tmp_path_factory.mktemp("runs") / "run")])


@pytest.fixture(scope="module")
def page_tables(runs: tuple[LoadedRun, ...]) -> dict[str, list[list[str]]]:
    return Reader(formatted(runs, "html")).tables


def markdown_tables(text: str) -> dict[str, list[list[str]]]:
    """Read tables of Markdown by their titles, without the line of rules."""
    tables: dict[str, list[list[str]]] = {}
    for block in text.split("### ")[1:]:
        title, _, lines = block.partition("\n\n")
        cells = [re.split(r" (?<!\\)\| ", line[2:-2]) for line in lines.strip().splitlines()]
        tables[title] = [[re.sub(r"\\(.)", r"\1", cell) for cell in row] for row in (cells[0], *cells[2:])]
    return tables


def test_markdown_has_the_tables_of_the_page(
    runs: tuple[LoadedRun, ...], page_tables: dict[str, list[list[str]]]
) -> None:
    assert list(markdown_tables(formatted(runs, "markdown")).values()) == list(page_tables.values())


def test_names_do_not_break_a_table_of_markdown(tmp_path: Path) -> None:
    name = "a|b\\<i>`*_\n"
    runs = read_runs([sample_runs.write_run(tmp_path / "run", sample_runs.results(("original", "yarn", name)))])
    rows = markdown_tables(formatted(runs, "markdown"))["Perplexity by length"]
    assert [len(row) for row in rows] == [1 + len(sample_runs.LENGTHS)] * 4
    assert rows[-1][0] == name.replace("\n", "\N{REPLACEMENT CHARACTER}")


def test_names_of_results_in_memory_are_made_printable_too(tmp_path: Path) -> None:
    """Those of a file are when it is read; half a character cannot be written at all."""
    name = "\ud800"
    results = lr.EvalResults.from_json(sample_runs.results(("original", "yarn")))
    rows = {name if row == "yarn" else row: candidate for row, candidate in results.candidates.items()}
    records = {
        measurement: {name if row == "yarn" else row: cells for row, cells in by_row.items()}
        for measurement, by_row in results.records.items()
    }
    for path in (tmp_path / "a.md", tmp_path / "a.html"):
        lr.report(replace(results, candidates=rows, records=records), path)
        assert "\N{REPLACEMENT CHARACTER}" in path.read_text(encoding="utf-8")


def test_results_of_a_model_beside_a_folder_of_its_name_are_two_runs(tmp_path: Path) -> None:
    folder = sample_runs.write_run(tmp_path / "tiny")
    lr.report([lr.EvalResults.load(folder), folder], tmp_path / "a.json")
    assert [*json.loads((tmp_path / "a.json").read_text())["verdicts"]] == ["tiny", "results 1"]


def test_csv_has_every_value_once(runs: tuple[LoadedRun, ...]) -> None:
    lines = list(csv.DictReader(io.StringIO(formatted(runs, "csv"))))
    record = sample_runs.results()
    assert {line["measurement"] for line in lines} == set(MEASUREMENTS)
    for name in ("perplexity", "retrieval", "positions", "differences"):
        assert sum(line["measurement"] == name for line in lines) == sum(map(len, record[name].values()))
    (line,) = (
        line
        for line in lines
        if (line["measurement"], line["candidate"], line["length"]) == ("perplexity", "yarn", "2048")
    )
    assert (line["run"], line["model"], line["corpus"]) == ("run", "tiny", sample_runs.CORPUS)
    assert float(line["perplexity"]) == record["perplexity"]["yarn"][-1]["perplexity"]
    shares = {line["candidate"]: line["percent"] for line in lines if line["measurement"] == "short_context"}
    assert {name: float(value) for name, value in shares.items()} == record["short_context"]


def test_a_value_that_is_not_finite_is_empty_in_csv_and_null_in_json() -> None:
    record = sample_runs.results(("original",))
    record["perplexity"]["original"][0] |= {"perplexity": None, "losses": [None] * 6}
    runs = (LoadedRun("run", lr.EvalResults.from_json(record)),)
    line = next(csv.DictReader(io.StringIO(formatted(runs, "csv"))))
    assert (line["measurement"], line["length"], line["perplexity"]) == ("perplexity", "256", "")
    table = next(table for table in parsed(runs)["tables"] if table["key"] == "perplexity-0")
    assert table["rows"][0][:2] == ["original", {"value": None}]


def parsed(runs: tuple[LoadedRun, ...]) -> Any:
    return json.loads(formatted(runs, "json"), parse_constant=pytest.fail)


def test_json_has_the_tables_with_whole_numbers(
    runs: tuple[LoadedRun, ...], page_tables: dict[str, list[list[str]]]
) -> None:
    tables = {table["key"]: table for table in parsed(runs)["tables"]}
    assert list(tables) == list(page_tables)
    assert all([table["columns"]] == page_tables[key][:1] for key, table in tables.items())
    cell = sample_runs.results()["perplexity"]["original"][0]
    expected = {"value": cell["perplexity"], "standard_error": pytest.approx(cell["standard_error"])}
    assert tables["perplexity-0"]["rows"][0][1] == expected
    rate = tables["score-0"]["rows"][0][2]
    assert rate.keys() == {"value", "standard_error", "low", "high"}
    assert rate["low"] <= rate["value"] <= rate["high"]
    assert math.isclose(rate["value"], sample_runs.results()["retrieval"]["original"][0]["score"])


def test_the_ending_of_a_report_decides_its_format(runs: tuple[LoadedRun, ...], tmp_path: Path) -> None:
    results = runs[0].results
    for name, expected in (("a.md", "markdown"), ("a.csv", "csv"), ("a.JSON", "json"), ("a.txt", "text")):
        lr.report(results, tmp_path / name)
        assert (tmp_path / name).read_text(encoding="utf-8") == formatted([LoadedRun("tiny", results)], expected)
    lr.report(results, tmp_path / "a")
    assert (tmp_path / "a").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "Perplexity by length" in (tmp_path / "a.txt").read_text(encoding="utf-8")
    assert "\x1b" not in (tmp_path / "a.txt").read_text(encoding="utf-8")


def test_what_holds_no_results_is_no_empty_report(tmp_path: Path) -> None:
    for runs in ([], [3], None):
        with pytest.raises(LongRopeError, match=r"runs = .*: not results. Pass EvalResults, or paths"):
            lr.report(runs, tmp_path / "a.html")  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_refused(runs: tuple[LoadedRun, ...]) -> None:
    with pytest.raises(LongRopeError, match=r"format = 'mardown' is unknown; .*did you mean 'markdown'"):
        formatted(runs, "mardown")
    assert set(FORMATS) == {"text", "html", "markdown", "csv", "json"}


def test_files_and_folders_are_runs_and_equal_names_are_told_apart(tmp_path: Path) -> None:
    folder = sample_runs.write_run(tmp_path / "laptop")
    (tmp_path / "cluster.json").write_text((folder / "results.json").read_text(encoding="utf-8"), encoding="utf-8")
    runs = read_runs([folder / "results.json", tmp_path / "cluster.json"])
    assert [run.name for run in runs] == ["laptop", "cluster"]
    rows = markdown_tables(formatted(runs, "markdown"))["Perplexity by length"]
    assert [row[0] for row in rows[1:]] == [
        f"{run}: {name}" for run in ("laptop", "cluster") for name in sample_runs.HARD
    ]
    with pytest.raises(LongRopeError, match="a run is given twice"):
        read_runs([folder, folder / "results.json"])
    with pytest.raises(LongRopeError, match="not a folder and not a file"):
        read_runs([tmp_path / "nowhere.json"])
    (tmp_path / "notes.txt").write_text("words")
    with pytest.raises(LongRopeError, match=r"notes\.txt is damaged"):
        read_runs([tmp_path / "notes.txt"])
