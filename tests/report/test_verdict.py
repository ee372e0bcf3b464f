"""The verdict: three sentences that use intervals, and never a difference inside one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import sample_runs
from transformers import LlamaConfig

import longrope as lr
from longrope.engines.predict import predict
from longrope.engines.registry import ENGINES
from longrope.errors import LongRopeError
from longrope.evaluation.records import document_perplexity
from longrope.export.hf_config import config_fields, for_mode
from longrope.report.comparison import long_alone, perplexity_gap
from longrope.report.load import LoadedRun, read_runs
from longrope.report.training_history import TrainingHistory
from longrope.report.verdict import answers, sentences, subject, verdict_of
from longrope.report.verdict_answer import VerdictAnswer
from longrope.report.works_answer import WORKS, Reached
from longrope.scaling import Extension

NAMES = ("original", "yarn", "extended")
Change = Callable[[dict[str, Any]], None]


def run_of(change: Change = lambda record: None, names: tuple[str, ...] = NAMES) -> LoadedRun:
    record = sample_runs.results(names)
    change(record)
    return LoadedRun("run", lr.EvalResults.from_json(record))


def set_losses(record: dict[str, Any], name: str, length: int, losses: list[float]) -> None:
    cells = record["perplexity"][name]
    at = sample_runs.LENGTHS.index(length)
    cells[at] = document_perplexity(losses, length, corpus=sample_runs.CORPUS).model_dump()


def set_scores(record: dict[str, Any], name: str, length: int, right: int, trials: int = 20) -> None:
    """Let a candidate answer the first prompts of each depth."""
    for cell in record["retrieval"][name]:
        if cell["length"] == length:
            scores = [1.0] * right + [0.0] * (trials - right)
            cell |= {"score": right / trials, "scores": scores, "trials": trials}


def works(run: LoadedRun) -> VerdictAnswer:
    return answers(run)[0]


def test_questions_on_one_text_have_no_p() -> None:
    """Chance cannot be told from one text, whatever the number of its questions."""

    def change(record: dict[str, Any]) -> None:
        for name, cells in record["retrieval"].items():
            cells = [cell for cell in cells if cell["task"] == "passkey"]
            record["retrieval"][name] = [cell | {"texts": [0] * cell["trials"], "questions": 100} for cell in cells]

    numbers = answers(run_of(change))[2].clause()
    assert "points, on one text" in numbers
    assert "p =" not in numbers
    assert "points, p =" in answers(run_of())[2].clause()


def test_every_outcome_has_words() -> None:
    assert set(WORKS) == set(product(("yes", "no", "unclear"), get_args(Reached)))


@pytest.mark.parametrize(
    ("right", "verdict"),
    [(20, "Works"), (16, "with too few trials to tell retrieval"), (18, "Works"), (14, "forgets what is hidden")],
)
def test_retrieval_counts_with_its_interval(right: int, verdict: str) -> None:
    """Of 200 trials, 160 right are 80%, with an interval of 73.9 to 85.0% that includes the limit; 180 are clear."""

    def change(record: dict[str, Any]) -> None:
        set_scores(record, "extended", 2048, right)

    answer = works(run_of(change))
    assert answer.verdict.endswith(verdict)
    assert answer.advice == {16: "measure again with more --trials"}.get(right, answer.advice)
    assert ("fine-tune" in answer.advice) == (right == 14)


@pytest.mark.parametrize(
    ("task", "weights", "needles", "told"),
    [
        ("recall", "stage-1/model", 0.5, True),
        ("niah_single_2", "stage-1/model", 0.5, False),
        ("recall", "smollm2", 0.5, False),  # weights that no training of the run left
        ("recall", "stage-1/model", 0.0, False),
    ],
)
def test_questions_of_a_form_that_the_training_planted_are_told(
    task: str, weights: str, needles: float, told: bool
) -> None:
    def change(record: dict[str, Any]) -> None:
        record["rows"]["extended"]["weights"] = weights
        for cells in record["retrieval"].values():
            for cell in cells:
                cell["task"] = task

    training = TrainingHistory("stage-1/model", 4096, 90.0, 2.5, {}, needles=needles)
    words = works(replace(run_of(change), trainings=(training,))).clause()
    assert "of what is hidden" in words
    assert ("of what is hidden, in lines of a form that it was trained on" in words) is told


@pytest.mark.parametrize(
    ("shift", "verdict"), [(-0.1, "Works"), (0.049, "too few documents"), (0.3, "but perplexity is higher")]
)
def test_perplexity_counts_with_its_interval(shift: float, verdict: str) -> None:
    """Against the original model at L0 on the same documents; the limit is 5% above."""

    def change(record: dict[str, Any]) -> None:
        base = record["perplexity"]["original"][0]["losses"]
        noise = [0.02, -0.02] * 3
        set_losses(record, "extended", 2048, [a + shift + b for a, b in zip(base, noise, strict=True)])

    assert verdict in works(run_of(change)).verdict


def test_the_interval_is_students() -> None:
    """Of two documents it is 12.7 standard errors wide to either side, of eleven 2.2."""
    gaps = np.array([-0.03, -0.01])

    def change(record: dict[str, Any]) -> None:
        set_losses(record, "yarn", 2048, [3.0, 2.0])
        set_losses(record, "extended", 2048, [3.0 + gaps[0], 2.0 + gaps[1]])

    gap = perplexity_gap(run_of(change), "extended", "yarn", 2048)
    assert gap is not None
    assert gap.percent.value == pytest.approx(100 * math.expm1(-0.02))
    assert gap.margin == pytest.approx(12.71 * 100 * math.exp(-0.02) * 0.01, rel=1e-3)
    assert gap.above() is None
    assert gap.above(-50) is True


def test_one_document_tells_no_difference() -> None:
    def alone(record: dict[str, Any]) -> None:
        record.pop("retrieval")
        record.pop("paired_retrieval")
        for name in NAMES:
            set_losses(record, name, 2048, [3.0 - 0.5 * NAMES.index(name)])

    _, costs, better = answers(run_of(alone))
    assert better.verdict == "Not clearly different from the best closed form, yarn"
    assert "on one document" in better.numbers
    assert "retrieval" not in better.numbers
    assert "Costs" in costs.verdict


def test_nothing_is_concluded_without_the_losses_of_each_document() -> None:
    def bare(record: dict[str, Any]) -> None:
        del record["retrieval"], record["paired_retrieval"]
        record["short_context"]["extended"] = 30.0
        for cells in record["perplexity"].values():
            for cell in cells:
                del cell["losses"]

    _, costs, better = answers(run_of(bare))
    assert costs.verdict == "Differs by an amount that cannot be told without the losses of each document"
    assert "perplexity +30.0%" in costs.numbers
    assert better.verdict == "Not compared with the best closed form, yarn"
    assert better.why == "These results do not hold the losses of the same documents."


def test_a_difference_inside_the_interval_is_none() -> None:
    def same(record: dict[str, Any]) -> None:
        theirs = record["perplexity"]["yarn"][-1]["losses"]
        set_losses(record, "extended", 2048, [loss + (0.1 if i % 2 else -0.11) for i, loss in enumerate(theirs)])
        for name in ("yarn", "extended"):
            set_scores(record, name, 2048, 18)

    assert answers(run_of(same))[2].verdict == "Not clearly different from the best closed form, yarn"


@pytest.mark.parametrize(
    ("perplexity", "right", "verdict"),
    [
        (-0.1, 19, "Better in perplexity and retrieval than"),
        (-0.1, 10, "Better in perplexity than"),
        (-0.1, 3, "Better in perplexity and worse in retrieval than"),
        (0.0, 19, "Better in retrieval than"),
        (0.0, 10, "Not clearly different from"),
        (0.0, 3, "Worse in retrieval than"),
        (0.1, 19, "Better in retrieval and worse in perplexity than"),
        (0.1, 10, "Worse in perplexity than"),
        (0.1, 3, "Worse in perplexity and retrieval than"),
    ],
)
def test_better_and_worse_are_said_of_perplexity_and_retrieval(perplexity: float, right: int, verdict: str) -> None:
    def change(record: dict[str, Any]) -> None:
        noise = [0.02, -0.02] * 3
        theirs = record["perplexity"]["yarn"][-1]["losses"]
        losses = [a + perplexity + b for a, b in zip(theirs, noise, strict=True)]
        set_losses(record, "extended", 2048, losses)
        set_scores(record, "yarn", 2048, 10)
        set_scores(record, "extended", 2048, right)

    assert answers(run_of(change))[2].verdict == f"{verdict} the best closed form, yarn"


def test_the_best_closed_form_is_the_one_with_the_lowest_perplexity() -> None:
    def change(record: dict[str, Any]) -> None:
        losses = record["perplexity"]["yarn"][-1]["losses"]
        set_losses(record, "ntk", 2048, [loss - 0.5 for loss in losses])

    better = answers(run_of(change, ("original", "ntk", "yarn", "extended")))[2]
    assert better.verdict.endswith("than the best closed form, ntk")
    nothing = answers(run_of(names=("original", "extended")))[2]
    assert nothing.verdict == "Not compared with a closed form"
    assert nothing.advice == "run longrope eval with --schemes yarn,heuristic"
    assert answers(run_of(names=("original", "yarn")))[2].verdict == "A closed form itself"


def test_what_the_long_factors_alone_cost_is_said() -> None:
    """The row of the long factors alone is not the subject, even where its perplexity is lower."""

    def change(record: dict[str, Any]) -> None:
        extension = sample_runs.factors_of("extended")
        assert isinstance(extension, Extension)
        for part in ("rows", "perplexity", "retrieval", "short_context"):
            for name, copied in (("run (long factors alone)", "heuristic"), ("run", "extended")):
                record[part][name] = json.loads(json.dumps(record[part][copied]))
        for name in ("heuristic", "extended"):
            for part in ("rows", "perplexity", "retrieval", "short_context", "differences", "paired_retrieval"):
                del record[part][name]
        for part in ("positions", "sliding", "key_tokens", "tasks"):
            del record[part]
        record["rows"]["run (long factors alone)"] = {
            "weights": record["rows"]["run"]["weights"],
            "factors": json.loads(extension.long.to_json()),
        }
        base = record["perplexity"]["original"][0]["losses"]
        set_losses(record, "run (long factors alone)", 256, [loss + 0.05 for loss in base])
        set_losses(record, "run (long factors alone)", 2048, [1.0] * 6)
        record["short_context"]["run (long factors alone)"] = 5.1

    run = run_of(change, ("original", "yarn", "heuristic", "extended"))
    assert long_alone(run, "run") == "run (long factors alone)"
    assert subject(run) == "run"
    assert "long factors alone, as in a static export, +5.1% ± 0.0%" in answers(run)[1].numbers


def exported(folder: Path, mode: str) -> Path:
    """The config of an export, which is all that engines are predicted from."""
    extension = sample_runs.factors_of("extended")
    assert isinstance(extension, Extension)
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, max_position_embeddings=256).to_dict()
    made = for_mode(extension, mode)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config | config_fields(config, made)), encoding="utf-8")
    (folder / "extension.json").write_text(made.to_json(), encoding="utf-8")
    return folder


@pytest.fixture(params=["dual", "static"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    return exported(tmp_path / "run" / "checkpoint", request.param)


def test_three_sentences_of_which_the_last_names_the_engines(checkpoint: Path) -> None:
    run_folder = sample_runs.write_run(checkpoint.parent)
    (run,) = read_runs([run_folder])
    lines = sentences(run)
    assert lines == verdict_of(run_folder)
    assert len(lines) == 3
    assert lines[0].startswith("“extended” at 2,048 tokens: works (perplexity ")
    assert lines[1].startswith("At 256 tokens (L0) it costs ")
    assert "; at 2,048 it is better in perplexity and retrieval than the best closed form, yarn (" in lines[1]
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    extension = lr.load_factors(checkpoint)
    assert isinstance(extension, Extension)
    good = [
        name
        for name in ENGINES
        if all(predict(name, config, extension, limit=2048, length=length).ok for length in (256, 2048))
    ]
    named = lines[2].removeprefix("Exported, it is run as made by ").partition("; not by ")
    assert named[0].rstrip(".").replace(" and ", ", ").split(", ") == good
    assert set(named[2].rstrip(".").replace(" and ", ", ").split(", ")) - {""} == set(ENGINES) - set(good)


def test_a_run_of_retrieval_alone_says_what_is_found() -> None:
    def no_perplexity(record: dict[str, Any]) -> None:
        for name in ("perplexity", "differences", "short_context", "positions", "sliding", "key_tokens", "tasks"):
            del record[name]
        for name, right in (("original", 0), ("yarn", 10), ("extended", 19)):
            set_scores(record, name, 2048, right)

    run = run_of(no_perplexity)
    assert answers(run) == ()
    assert sentences(run) == [
        "At 2,048 tokens “original” finds 0.0% (0.0–1.9%) of what is hidden; “yarn” finds 50.0% (43.1–56.9%) of "
        "what is hidden; “extended” finds 95.0% (91.0–97.3%) of what is hidden.",
        "Perplexity was not measured.",
    ]


def test_retrieval_without_any_score_was_not_measured() -> None:
    def nothing(record: dict[str, Any]) -> None:
        for name in ("perplexity", "retrieval"):
            record[name] = {row: [] for row in record[name]}

    assert sentences(run_of(nothing))[0] == "Nothing was measured on test documents yet."


def test_a_checkpoint_elsewhere_is_given_for_one_run(checkpoint: Path, tmp_path: Path) -> None:
    results = sample_runs.write_run(tmp_path / "eval")
    (run,) = read_runs([results])
    assert "add --checkpoint FOLDER to longrope report" in sentences(run)[-1]
    assert len(sentences(run)) == 3
    (run,) = read_runs([results], checkpoint=checkpoint)
    assert sentences(run)[-1].startswith("Exported, it is run as made by transformers")
    with pytest.raises(LongRopeError, match="it belongs to one run"):
        read_runs([results, sample_runs.write_run(tmp_path / "other")], checkpoint=checkpoint)
    with pytest.raises(LongRopeError, match=r"checkpoint = .*: no config\.json. Give a folder that longrope export"):
        read_runs([results], checkpoint=tmp_path)


def test_questions_of_few_texts_are_too_few(tmp_path: Path) -> None:
    """Two hundred right answers about two texts say little about others, and two texts are no difference."""

    def of_texts(count: int) -> Change:
        def change(record: dict[str, Any]) -> None:
            for name, right in (("yarn", 4), ("extended", 20)):
                set_scores(record, name, 2048, right)
                cells = record["retrieval"][name]
                record["retrieval"][name] = [cell for cell in cells if cell["task"] == cells[0]["task"]]
                for cell in record["retrieval"][name]:
                    cell |= {"texts": [i % count for i in range(20)], "questions": 10}

        return change

    few, many = (answers(run_of(of_texts(count))) for count in (2, 10))
    assert "with too few trials to tell retrieval" in few[0].verdict
    assert "retrieval" not in few[2].verdict
    assert many[0].verdict == "Works"
    assert "retrieval" in many[2].verdict


def test_a_cost_that_few_documents_cannot_tell_is_not_nothing() -> None:
    def costing(*gaps: float) -> VerdictAnswer:
        def change(record: dict[str, Any]) -> None:
            del record["retrieval"], record["paired_retrieval"]
            for name in NAMES:
                extra = gaps if name == "extended" else (0.0,) * len(gaps)
                for length in sample_runs.LENGTHS:
                    set_losses(record, name, length, [3.0 + gap for gap in extra])

        return answers(run_of(change))[1]

    few = costing(0.30, 0.38)
    assert few.verdict == "Differs by an amount that 2 documents cannot tell"
    assert few.advice == "measure again with more --documents"
    assert costing(0.34).verdict == "Differs by an amount that 1 document cannot tell"
    assert costing(0.0, 0.0).verdict == "Costs nothing that can be measured on these texts"
    assert costing(*[0.004, -0.004] * 4).verdict == "Costs nothing that can be measured on these texts"


def test_pieces_of_one_document_are_said_to_be_that() -> None:
    def one_book(record: dict[str, Any]) -> None:
        record["corpora"][sample_runs.CORPUS]["documents"] = ["book"] * 6

    assert "The 6 texts are pieces of 1 document: " in works(run_of(one_book)).why
    assert "pieces" not in works(run_of()).why


def test_the_model_as_it_is_gets_no_advice() -> None:
    alone = answers(run_of(names=("original",)))
    assert [answer.advice for answer in alone[1:]] == ["", ""]
    assert alone[1].verdict == "Is the model as it is"


def test_closed_forms_that_are_not_finite_were_measured() -> None:
    def broken(record: dict[str, Any]) -> None:
        set_losses(record, "yarn", 2048, [math.nan] * 6)

    better = answers(run_of(broken))[2]
    assert better.verdict == "Not compared: no closed form has a finite perplexity"
    assert "Perplexity of yarn at 2,048 tokens is not finite" in better.why
