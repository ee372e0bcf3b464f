from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from made_up import measured, sample_set

from longrope.errors import LongRopeError
from longrope.evaluation import (
    by_length,
    by_position,
    differences,
    key_tokens,
    paired_retrieval,
    retrieval,
    short_context,
)
from longrope.evaluation.figure import Number
from longrope.evaluation.measurement import EvalSpec
from longrope.evaluation.prompt_samples import prompt_samples
from longrope.evaluation.records import Perplexity
from longrope.evaluation.retrieval_score import RetrievalScore, pooled_rate
from longrope.evaluation.statistics import wilson_interval
from longrope.tasks.prompts import Prompt


def test_perplexity_is_of_the_mean_over_documents() -> None:
    texts = sample_set(
        "texts", [{"lengths": {"8": math.log(2), "16": 1.0}}, {"lengths": {"8": math.log(8), "16": None}}]
    )
    short, long = by_length.aggregate(measured(EvalSpec([8, 16]), texts), "original")
    assert (short.corpus, short.length, long.length) == ("books", 8, 16)
    assert short.perplexity == pytest.approx(4)
    assert short.standard_error == pytest.approx(4 * math.log(2))  # of ln 2 and ln 8: half their distance
    assert math.isnan(long.perplexity)
    assert "stride" not in short.model_dump()


def test_positions_are_the_means_between_borders() -> None:
    texts = sample_set("texts", [{"positions": [1.0, 2.0]}, {"positions": [3.0, 4.0]}])
    records = by_position.aggregate(measured(EvalSpec([3]), texts), "original")
    assert [(record.start, record.end, record.loss, record.standard_error) for record in records] == [
        (1, 2, 2.0, pytest.approx(1.0)),
        (2, 3, 3.0, pytest.approx(1.0)),
    ]


@pytest.mark.parametrize(
    ("chosen", "perplexity", "share"),
    [({0: [1, 2, 3], 1: [4], 2: []}, (2**3 * 32) ** (1 / 4), 4 / 30), ({0: [], 1: [], 2: []}, math.nan, 0)],
)
def test_key_tokens_of_all_documents_count_alike(chosen: dict[int, list[int]], perplexity: float, share: float) -> None:
    """One document has three of them, one has one, one has none: not the mean of the documents' means."""
    texts = sample_set("texts", [{"key": math.log(2)}, {"key": math.log(32)}, {"key": None}])
    evaluation = measured(EvalSpec([11], key_tokens="original"), texts)
    evaluation.__dict__["key_tokens"] = {"books": chosen}
    (record,) = key_tokens.aggregate(evaluation, "original")
    assert record.perplexity == pytest.approx(perplexity, nan_ok=True)
    assert record.share == pytest.approx(share)
    assert record.chosen_by == "original"


def test_retrieval_by_depth() -> None:
    trials = [
        {"depth": 0.0, "score": 1.0, "choice": True, "choices": 4},
        {"depth": 0.5, "score": 0.0, "choice": None, "choices": 4},
        {"depth": 0.0, "score": 0.5, "choice": False, "choices": 4},
        {"depth": 0.0, "score": 0.0, "choice": None, "choices": 4},
    ]
    prompt = Prompt(np.zeros(500, dtype=np.int64), ("x",), (), 0.0, 12)
    spec = EvalSpec([512], retrieval={("passkey", 512): [prompt] * 4})
    evaluation = measured(spec, sample_set("retrieval passkey 512", trials))
    front, middle = retrieval.aggregate(evaluation, "original")
    assert front.model_dump() == {
        "task": "passkey",
        "length": 512,
        "depth": 0.0,
        "score": 0.5,
        "standard_error": pytest.approx(np.std([1, 0.5, 0], ddof=1) / 3**0.5),
        **dict(zip(("low", "high"), wilson_interval(1.5, 3), strict=True)),
        "scores": (1.0, 0.5, 0.0),
        "choice": 0.5,  # of those in which there was one
        **dict(zip(("choice_low", "choice_high"), wilson_interval(1, 2), strict=True)),
        "chance": 0.25,
        "trials": 3,
    }
    assert (middle.choice, middle.chance, middle.trials) == (None, None, 1)
    assert math.isnan(middle.standard_error)


def scores(*values: float, task: str = "passkey", depth: float | None = 0.0) -> RetrievalScore:
    mean = sum(values) / len(values)
    return RetrievalScore(task=task, length=512, depth=depth, score=mean, scores=values, trials=len(values))


def test_a_rate_over_records_counts_every_trial_once() -> None:
    """Not the mean of the records' means, 50%: seven of the ten trials were right."""
    rate = pooled_rate([scores(0, 0, 0), scores(*[1.0] * 7, depth=0.5)])
    assert rate.value == pytest.approx(0.7)
    assert rate.interval == wilson_interval(7, 10)
    assert pooled_rate([scores(1.0), RetrievalScore(task="vt", length=512, score=0.0)]) == Number(0.5)
    assert pooled_rate([scores(1.0), scores(math.nan)]) == Number(None, finite=False)
    assert pooled_rate([]) == Number(None)


def test_a_record_of_an_earlier_version_gets_its_interval() -> None:
    record = RetrievalScore.model_validate({"task": "vt", "length": 8, "score": 0.95, "trials": 20, "choice": 1.0})
    assert (record.low, record.high) == wilson_interval(19, 20)
    assert (record.choice_low, record.choice_high) == wilson_interval(20, 20)
    assert RetrievalScore.model_validate(record.model_dump()) == record
    without = RetrievalScore(task="vt", length=8, score=0.95)
    assert without.rate == Number(0.95)
    assert not {"low", "high", "scores"} & without.model_dump().keys()


def test_retrieval_is_compared_prompt_by_prompt() -> None:
    """A difference of two in ten that is never worse, over two tasks, beside one of many wins and losses."""
    yarn = [scores(1, 0, 0, 0, 0), scores(1, 1, 0, 0, 0, task="vt", depth=None)]
    better = [scores(1, 1, 0, 0, 0), scores(1, 1, 0, 0.5, 0, task="vt", depth=None)]
    compared = partial(paired_retrieval.paired_retrieval, length=512, against="yarn")
    pair = compared(better, yarn[::-1])
    assert pair is not None
    assert (pair.trials, pair.wins, pair.losses, pair.p) == (10, 2, 0, 0.5)
    assert pair.points == pytest.approx(15.0)
    mcnemar = compared([scores(*[1.0] * 9 + [0.0] * 3)], [scores(*[0.0] * 11 + [1.0])])
    assert mcnemar is not None
    assert mcnemar.p == pytest.approx(2 * (1 + 10) / 2**10)  # 9 wins and 1 loss of a fair coin
    assert mcnemar.clear
    assert compared(better, yarn[:1]) is None
    assert compared(better, [scores(1, 0, 0), yarn[1]]) is None
    assert compared([RetrievalScore(task="vt", length=512, score=1.0)] * 2, yarn) is None
    broken = compared([scores(1, math.nan, 0, 0, 0), better[1]], yarn)
    assert broken is not None
    assert (broken.wins, broken.losses, math.isnan(broken.p), broken.finite) == (0, 0, True, False)


def test_questions_of_one_text_are_one_toss() -> None:
    """Seven questions of one text and three others of another: two texts, of which each candidate wins one."""
    texts = (0,) * 7 + (1,) * 3
    ours = [scores(*[1.0] * 7 + [0.0] * 3).model_copy(update={"texts": texts})]
    yarn = [scores(*[0.0] * 7 + [1.0] * 3).model_copy(update={"texts": texts})]
    pair = paired_retrieval.paired_retrieval(ours, yarn, length=512, against="yarn")
    assert pair is not None
    assert (pair.trials, pair.texts, pair.wins, pair.losses, pair.p) == (10, 2, 1, 1, 1.0)
    assert pair.points == pytest.approx(40.0)


def test_a_difference_is_clear_only_on_the_side_of_its_points() -> None:
    """A tenth better on twenty prompts, all worse on five: fewer points, and more prompts better."""
    ours = [scores(*[0.6] * 20), scores(*[0.0] * 5, task="vt")]
    yarn = [scores(*[0.5] * 20), scores(*[1.0] * 5, task="vt")]
    pair = paired_retrieval.paired_retrieval(ours, yarn, length=512, against="yarn")
    assert pair is not None
    assert (pair.points < 0, pair.wins, pair.losses, pair.p < 0.05) == (True, 20, 5, True)
    assert not pair.clear


def test_paired_retrieval_is_against_original_and_yarn_by_length() -> None:
    evaluation = measured(EvalSpec([8]), sample_set("texts", [0.0]), "original", "yarn", "searched")
    evaluation.records["retrieval"] = {
        "original": (scores(0, 0),),
        "yarn": (scores(1, 0),),
        "searched": (scores(1, 1),),
    }
    pairs = paired_retrieval.aggregate(evaluation, "searched")
    assert [(pair.against, pair.length, pair.points) for pair in pairs] == [("original", 512, 100), ("yarn", 512, 50)]
    assert [pair.against for pair in paired_retrieval.aggregate(evaluation, "yarn")] == ["original"]


def test_drawn_depths_are_summed_up_in_fifths() -> None:
    """Chosen ones are not, however many they are."""
    depths = [0.01, 0.19, 0.21, 0.35, 0.39, 0.55, 0.999, 1.0]
    for drawn, expected in ((True, {0.1: 2, 0.3: 3, 0.5: 1, 0.9: 2}), (False, dict.fromkeys(depths, 1))):
        trials = [{"depth": depth, "score": 1.0, "choice": None, "choices": 1} for depth in depths]
        prompt = Prompt(np.zeros(500, dtype=np.int64), ("x",), (), 0.0, 12, chat=True, own_haystack=True, drawn=drawn)
        spec = EvalSpec([512], retrieval={("niah_single_2", 512): [prompt] * len(trials)})
        evaluation = measured(spec, sample_set("retrieval niah_single_2 512", trials))
        records = retrieval.aggregate(evaluation, "original")
        assert {record.depth: record.trials for record in records} == expected
        assert all(record.chat and record.own_haystack for record in records)


def test_longer_prompts_are_refused() -> None:
    prompt = Prompt(np.zeros(4090, dtype=np.int64), ("x",), (), 0.0, 12)
    with pytest.raises(LongRopeError, match="a prompt has 4102 tokens"):
        prompt_samples("passkey", 4096, [prompt])


def test_a_text_counts_once_for_all_its_questions() -> None:
    """The texts of 300 tokens with two and one questions of 100 tokens, and two texts of one question."""
    first, second = (np.full(380, number, dtype=np.int64) for number in (1, 2))
    shared = [Prompt(tokens, ("x",), (), 0.0, 20, shared=300) for tokens in (first, first, second)]
    assert prompt_samples("recall", 400, shared, questions=2).tokens == (2 * 300 + 3 * 100) / 3
    assert prompt_samples("recall", 400, shared, questions=2).name == "retrieval recall 400 2 questions"
    alone = [Prompt(tokens, ("x",), (), 0.0, 20) for tokens in (first, second)]
    assert (prompt_samples("recall", 400, alone).tokens, prompt_samples("recall", 400, alone).name) == (
        400,
        "retrieval recall 400",
    )


def perplexity(value: float, *losses: float, length: int = 8, corpus: str = "books") -> Perplexity:
    return Perplexity(corpus=corpus, length=length, perplexity=value, losses=losses)


def with_perplexities(perplexities: dict[str, tuple[Perplexity, ...]], original_length: int = 8):
    evaluation = measured(EvalSpec([original_length]), sample_set("texts", [0.0]), *perplexities)
    evaluation.records["perplexity"] = perplexities
    return evaluation


def test_differences_are_from_original_and_yarn_and_from_no_candidate_to_itself() -> None:
    evaluation = with_perplexities(
        {
            "original": (perplexity(4.0, 1.0, 2.0),),
            "yarn": (perplexity(4.0, 1.5, 2.5),),
            "searched": (perplexity(4.0, 0.9, 1.8),),
        }
    )
    records = {name: differences.aggregate(evaluation, name) for name in evaluation.candidates}
    assert {name: [record.against for record in rows] for name, rows in records.items()} == {
        "original": ["yarn"],
        "yarn": ["original"],
        "searched": ["original", "yarn"],
    }
    against_original = records["searched"][0]
    assert against_original.percent == pytest.approx(100 * (math.exp(-0.15) - 1))
    assert (against_original.wins, against_original.losses, against_original.length) == (2, 0, 8)


def test_the_short_context_is_compared_at_l0_on_the_first_corpus() -> None:
    rows = {
        "original": (perplexity(4.0), perplexity(99.0, length=512), perplexity(8.0, corpus="code")),
        "searched": (perplexity(5.0), perplexity(1.0, length=512), perplexity(1.0, corpus="code")),
        "broken": (perplexity(math.nan), perplexity(1.0, length=512), perplexity(1.0, corpus="code")),
    }
    evaluation = with_perplexities(rows)
    assert short_context.aggregate(evaluation, "original") is None
    assert [math.isnan(record.percent) for record in short_context.aggregate(evaluation, "broken") or ()] == [True]
    searched = short_context.aggregate(evaluation, "searched")
    assert searched is not None
    assert searched[0].percent == pytest.approx(25.0)
    del evaluation.records["perplexity"]["original"]  # pyright: ignore
    assert short_context.aggregate(evaluation, "searched") is None
