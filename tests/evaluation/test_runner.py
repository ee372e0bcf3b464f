from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import ROPE

from longrope.errors import LongRopeError
from longrope.evaluation.candidate import Candidate
from longrope.evaluation.measurement import Corpus, EvalSpec, SampleSet
from longrope.evaluation.runner import EvalContext, measure_missing
from longrope.evaluation.sample_store import SampleStore
from longrope.scaling import Extension, Scaling
from longrope.storage.jsonl import JsonlFile


def test_only_missing_samples_are_measured_and_equal_factors_once(tmp_path: Path) -> None:
    opened: list[str] = []
    measured: list[list[int]] = []

    def open_model(name: str) -> Any:
        opened.append(name)
        return None, None

    def measure(_: Any, samples: Sequence[int]) -> Any:
        measured.append([*samples])
        return ((index, float(index)) for index in samples)

    three = SampleSet("three", 3, 10, measure)
    candidates = {name: Candidate("model", Scaling([2.0, 2.0], scheme=name)) for name in ("pi", "pi by another name")}
    path = tmp_path / "cells.jsonl"
    with closing(JsonlFile(path, {}, subject="a test", resume=False)) as journal:
        SampleStore(journal).add(candidates["pi"], three, 1, math.inf)
    progress: list[tuple[int, int, str]] = []
    with closing(JsonlFile(path, {}, subject="a test", resume=True)) as journal:
        store = SampleStore(journal)
        measure_missing(store, candidates, [three], open_model, lambda *line: progress.append(line))
        assert store.samples(candidates["pi"], three) == [0.0, None, 2.0]  # infinity became None
    assert (measured, opened) == ([[0, 2]], ["model"])
    assert (progress[0], progress[-1]) == ((10, 30, "1/1 pi: three"), (30, 30, "1/1 pi: three"))
    with closing(JsonlFile(path, {}, subject="a test", resume=True)) as journal:
        measure_missing(SampleStore(journal), candidates, [three], open_model)
    assert opened == ["model"]


def test_texts_of_one_length_are_measured_once_for_equal_factors_there(tmp_path: Path) -> None:
    """An extension beyond L0 is what its long factors alone are; texts of several lengths need both."""
    extension = Extension.of(ROPE, Scaling([2.0] * (ROPE.dim // 2), length=2 * ROPE.original_length))
    candidates = {"extended": Candidate("model", extension), "long alone": Candidate("model", extension.long)}
    measured: list[tuple[str, Any]] = []

    def samples_of(name: str, length: int | None) -> SampleSet:
        def measure(subject: Any, indices: Sequence[int]) -> Any:
            measured.append((name, subject.scaling))
            return ((index, float(len(measured))) for index in indices)

        return SampleSet(name, 1, 10, measure, length)

    long, short = samples_of("long", 2 * ROPE.original_length), samples_of("short", ROPE.original_length)
    several, path = samples_of("several", None), tmp_path / "cells.jsonl"
    with closing(JsonlFile(path, {}, subject="a test")) as journal:
        store = SampleStore(journal)
        measure_missing(store, candidates, [long, short, several], lambda _: (None, None))
    assert [name for name, _ in measured] == ["long", "short", "several", "short", "several"]
    assert store.samples(candidates["long alone"], long) == store.samples(candidates["extended"], long) == [1.0]
    with closing(JsonlFile(path, {}, subject="a test", resume=True)) as journal:
        measure_missing(SampleStore(journal), candidates, [long, short, several], lambda _: (None, None))
    assert len(measured) == 5
    line = f'{{"row": "{candidates["extended"].key}", "part": "long", "cell": 0, "value": 7.5}}'
    path.write_text('{"version": 1, "settings": {}}\n' + line + "\n")
    with closing(JsonlFile(path, {}, subject="a test", resume=True)) as journal:
        assert SampleStore(journal).samples(candidates["extended"], long) == [7.5], "an earlier version wrote it"


def test_a_model_is_gone_before_the_next_one_is_opened(tmp_path: Path) -> None:
    """A device need not hold two."""

    class Model:
        pass

    alive: list[weakref.ref[Model]] = []

    def open_model(_: str) -> Any:
        assert not any(one() for one in alive)
        model = Model()
        model.itself = model  # pyright: ignore[reportAttributeAccessIssue]
        alive.append(weakref.ref(model))
        return model, None

    samples = SampleSet("one", 1, 10, lambda _, indices: ((index, 1.0) for index in indices))
    candidates = {name: Candidate(name) for name in ("a", "b", "c")}
    with closing(JsonlFile(tmp_path / "cells.jsonl", {}, subject="a test", resume=False)) as journal:
        measure_missing(SampleStore(journal), candidates, [samples], open_model)
    assert len(alive) == 3


def test_a_journal_of_the_version_before_is_read(tmp_path: Path) -> None:
    """The keys of its lines are row, part, cell and value; the row is a digest of weights and factors."""
    path = tmp_path / "cells.jsonl"
    line = '{"row": "47c7fa14cf40", "part": "text books", "cell": 0, "value": 1.5}'
    path.write_text('{"version": 1, "settings": {}}\n' + line + "\n")
    with closing(JsonlFile(path, {}, subject="an evaluation", resume=True)) as journal:
        store = SampleStore(journal)
    assert store.samples(Candidate("model"), SampleSet("text books", 1, 1, lambda *_: iter(()))) == [1.5]


def test_keys_of_candidates_are_those_of_the_version_before() -> None:
    assert Candidate("model").key == "47c7fa14cf40"
    assert Candidate("model", Scaling([1.0, 2.5], attention_factor=1.1, start_tokens=4)).key == "e1e8346adfc5"


def test_other_weights_of_one_name_are_another_candidate() -> None:
    scalings, digests = (None, Scaling([2.0])), ("", "a", "b")
    keys = {Candidate("model", scaling, digest).at(8).key for scaling in scalings for digest in digests}
    assert len(keys) == 6


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (EvalSpec([4096]), "a document of books has 100 tokens, fewer than 4096"),
        (EvalSpec([64], key_tokens="pi"), "key_tokens = 'pi': not a candidate. Choose one of original"),
        (EvalSpec([32, 64], stride=65), "stride = 65: above the longest of lengths, 64. Give a smaller one"),
        (EvalSpec([64], measurements=["bogus"]), "measurements = 'bogus' is unknown"),
        (EvalSpec([64], measurements=["sliding"]), "measurements = 'sliding': it is not requested by name"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused(spec: EvalSpec, message: str) -> None:
    corpus = Corpus("books", np.zeros((2, 100), dtype=np.int64), ("a", "b"))
    with pytest.raises(LongRopeError, match=message):
        EvalContext({"original": Candidate("model")}, [corpus], spec, ROPE, lambda _: pytest.fail("a model is loaded"))
