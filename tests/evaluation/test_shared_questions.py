"""Evaluations that ask several questions of one text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest

import longrope as lr
from longrope.errors import LongRopeError
from longrope.evaluation import retrieval
from longrope.tasks.prompt_sets import DEPTHS
from longrope.tasks.registry import make_prompts
from longrope.tasks.scoring import score_prompts

LENGTH = 400


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    return lr.load("tiny", dtype="float32")


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    return families.tokens(2, LENGTH).tolist()


def evaluated(tiny: tuple[Any, Any], texts: list[list[int]], output: Path, **fields: Any) -> lr.EvalResults:
    """Return the results of two candidates on `recall`: six questions, four of one text and two of another."""
    options = lr.EvalOptions(**{"trials": 6, "questions": 4, "output": output, **fields})
    candidates = {"yarn": lr.scheme("yarn", lr.Rope.of(tiny[0]), LENGTH)}
    return lr.evaluate(*tiny, candidates, lengths=[LENGTH], texts=texts, retrieval=["recall"], options=options)


def test_the_scores_are_those_of_the_prompts_and_a_stop_loses_no_question(
    tiny: tuple[Any, Any], texts: list[list[int]], tmp_path: Path
) -> None:
    """Cut in the middle of a document, the rest of its questions are asked again."""
    results = evaluated(tiny, texts, tmp_path)
    request = {"length": LENGTH, "trials": 6, "texts": np.array(texts), "depths": DEPTHS, "questions": 4}
    prompts = make_prompts("recall", tiny[1], **request)
    with lr.patch(tiny[0], results.candidates["yarn"].scaling):
        scores = score_prompts(*tiny, prompts)
    records = results["retrieval"]["yarn"]
    assert sum(record.score * record.trials for record in records) == sum(score.score for score in scores)
    assert {(record.questions, record.length) for record in records} == {(4, LENGTH)}
    assert lr.EvalResults.load(tmp_path)["retrieval"] == results["retrieval"]
    lines = (tmp_path / "cells.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cells.jsonl").write_text("".join(lines[:-3]))
    passed: list[int] = []
    hook = tiny[0].get_input_embeddings().register_forward_hook(lambda *made: passed.append(made[1][0].shape[1]))
    with hook:
        resumed = evaluated(tiny, texts, tmp_path)
    assert len([size for size in passed if size > 50]) == 2  # one question of the first text, two of the second
    assert resumed["retrieval"] == results["retrieval"]
    assert (tmp_path / "cells.jsonl").read_text().splitlines(keepends=True) == lines


def test_a_folder_keeps_the_questions_of_a_text_apart(
    tiny: tuple[Any, Any], texts: list[list[int]], tmp_path: Path
) -> None:
    """One question a text leaves the journal and the results as they were before."""
    single = evaluated(tiny, texts, tmp_path, questions=1, trials=2)
    journal = (tmp_path / "cells.jsonl").read_text()
    assert '"part": "retrieval recall 400"' in journal
    assert "questions" not in journal
    assert "questions" not in json.loads((tmp_path / "results.json").read_text())["retrieval"]["yarn"][0]
    assert {record.questions for record in single["retrieval"]["yarn"]} == {1}
    both = evaluated(tiny, texts, tmp_path, questions=2, trials=2)
    assert {record.questions for record in both["retrieval"]["yarn"]} == {2}
    assert (tmp_path / "cells.jsonl").read_text().startswith(journal)


def test_a_report_says_it(tiny: tuple[Any, Any], texts: list[list[int]], tmp_path: Path) -> None:
    evaluated(tiny, texts, tmp_path)
    lr.report(tmp_path, tmp_path / "report.html")
    assert "Each text is asked 4 questions." in (tmp_path / "report.html").read_text()


def test_a_task_that_cannot_share_a_text_is_refused(tiny: tuple[Any, Any], texts: list[list[int]]) -> None:
    options = lr.EvalOptions(questions=4)
    with pytest.raises(LongRopeError, match="questions = 4: task passkey has one question a document"):
        lr.evaluate(*tiny, lengths=[LENGTH], texts=texts, retrieval=["passkey"], options=options)


def test_records_of_before_had_one_question() -> None:
    assert retrieval.RetrievalScore(task="passkey", length=512, score=1.0).questions == 1


def test_scores_say_which_text_they_are_about(tiny: tuple[Any, Any], texts: list[list[int]], tmp_path: Path) -> None:
    records = evaluated(tiny, texts, tmp_path, depths=[0.5])["retrieval"]["yarn"]
    assert [record.texts for record in records] == [(0, 0, 0, 0, 1, 1)]
    assert evaluated(tiny, texts, tmp_path / "alone", questions=1)["retrieval"]["yarn"][0].texts == ()


def test_depths_that_were_asked_for_stay_and_drawn_ones_are_summed_up(
    tiny: tuple[Any, Any], texts: list[list[int]], tmp_path: Path
) -> None:
    def depths(name: str, **fields: Any) -> list[float | None]:
        options = lr.EvalOptions(output=tmp_path / name, **fields)
        results = lr.evaluate(*tiny, lengths=[LENGTH], texts=texts, retrieval=["niah_single_1"], options=options)
        return sorted(record.depth for record in results["retrieval"]["original"])

    assert depths("asked", trials=4, depths=[0.0, 0.4, 0.6, 1.0]) == [0.0, 0.4, 0.6, 1.0]
    drawn = depths("drawn", trials=3)
    assert drawn
    assert set(drawn) <= {0.1, 0.3, 0.5, 0.7, 0.9}


def test_groups_of_tasks_leave_out_what_does_not_fit(
    tiny: tuple[Any, Any], texts: list[list[int]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As on the command line: without RULER's files its questions of SQuAD are no error."""
    options = lr.EvalOptions(trials=1, output=tmp_path, original=True)
    results = lr.evaluate(*tiny, lengths=[LENGTH], texts=texts, retrieval=["ruler"], options=options)
    asked = {record.task for record in results["retrieval"]["original"]}
    assert "niah_single_1" in asked
    assert "qa_1" not in asked
    assert "Left out: " in caplog.text
    with pytest.raises(LongRopeError, match="questions of squad"):
        lr.evaluate(*tiny, lengths=[LENGTH], texts=texts, retrieval=["qa_1"], options=lr.EvalOptions(trials=1))
