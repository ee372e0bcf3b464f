from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import sample_runs

import longrope as lr
from longrope.errors import LongRopeError
from longrope.evaluation.candidate import Candidate
from longrope.evaluation.registry import MEASUREMENTS

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize("name", ["schemes.json", "demo.json"])
def test_files_of_the_version_before_open_and_are_written_again_alike(name: str, tmp_path: Path) -> None:
    before = json.loads((COMMITTED / name).read_text(encoding="utf-8"))
    results = lr.EvalResults.load(COMMITTED / name)
    results.save(tmp_path / "results.json")
    after = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    for row, records in after.get("retrieval", {}).items():
        for record, old in zip(records, before["retrieval"][row], strict=True):
            assert 0 <= record["low"] <= record["score"] <= record["high"] <= 1
            for key in {"low", "high", "choice_low", "choice_high"} - old.keys():  # intervals are newer than some files
                record.pop(key, None)
    assert after == {key: value for key, value in before.items() if key != "parity"}  # the demo adds its parity
    assert lr.EvalResults.load(tmp_path) == results


def test_all_measurements_survive_a_round_trip(tmp_path: Path) -> None:
    record = sample_runs.results()
    record["perplexity"]["pi"][-1] |= {"perplexity": None, "standard_error": None, "losses": [None] * 6}
    results = lr.EvalResults.from_json(record)
    assert set(results.records) == set(MEASUREMENTS)
    assert math.isnan(results["perplexity"]["pi"][-1].perplexity)
    results.save(tmp_path / "results.json")
    assert lr.EvalResults.load(str(tmp_path / "results.json")) == results
    written = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    for name in ("perplexity", "differences", "positions", "sliding", "key_tokens", "tasks", "short_context", "rows"):
        assert written[name] == record[name], name


def test_frames_have_the_candidates_and_the_keys_of_the_file() -> None:
    results = lr.EvalResults.from_json(sample_runs.results())
    frame = results.to_frame("perplexity")
    assert list(frame.columns) == ["candidate", "corpus", "length", "perplexity", "standard_error", "losses"]
    assert len(frame) == len(sample_runs.HARD) * len(sample_runs.LENGTHS)
    last = frame[(frame.candidate == "yarn") & (frame.length == 2048)].iloc[0]
    assert last.perplexity == results["perplexity"]["yarn"][-1].perplexity
    assert list(results.to_frame("tasks").columns) == ["candidate", "task", "metric", "value"]
    assert list(results.to_frame("short_context").candidate) == [n for n in sample_runs.HARD if n != "original"]
    with pytest.raises(LongRopeError, match=r"measurement = 'loss': not measured"):
        results.to_frame("loss")


def test_without_pandas_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    results = lr.EvalResults.from_json(sample_runs.results())
    with pytest.raises(LongRopeError, match=r'pandas is not installed. Run pip install "longrope\[pandas\]"'):
        results.to_frame()


def test_factors_of_another_rope_are_refused() -> None:
    with pytest.raises(LongRopeError, match="2"):
        lr.EvalResults(sample_runs.ROPE, {"mine": Candidate("model", lr.Scaling([1.0, 2.0]))})


def test_a_report_takes_results_paths_and_both(tmp_path: Path) -> None:
    results = lr.EvalResults.from_json(sample_runs.results())
    folder = sample_runs.write_run(tmp_path / "run")
    for number, runs in enumerate((results, str(folder), folder, [results, folder], [results, results])):
        path = tmp_path / f"{number}.html"
        lr.report(runs, path)
        assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "tiny: yarn" in (tmp_path / "3.html").read_text(encoding="utf-8")  # two runs with rows of one name
