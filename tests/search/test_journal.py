from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from searching import quadratic, run_search

from longrope.errors import LongRopeError
from longrope.rope import Scaling
from longrope.search.evolution import Paper
from longrope.search.journal import Journal

SETTINGS = {"model": "tiny", "length": 2048, "space": {"start_tokens": (0, 1)}, "seed": 0}
METHOD, BUDGET = Paper(generations=2).sized(8), 12


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "search.jsonl"


@pytest.fixture(autouse=True)
def closed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Journals stay open while a test reads their files, as at a crash."""
    opened: list[Journal] = []
    plain = Journal.__init__

    def remembered(journal: Journal, *args: object, **fields: object) -> None:
        plain(journal, *args, **fields)
        opened.append(journal)

    monkeypatch.setattr(Journal, "__init__", remembered)
    yield
    for journal in opened:
        journal.close()


def write(path: Path, settings: dict[str, object] = SETTINGS, **fields: object) -> Journal:
    journal = Journal(path, settings, **fields)
    journal.evaluate(Scaling([1, 2]), lambda _: 1.5)
    return journal


def never(_: Scaling) -> float:
    raise AssertionError("evaluated again")


def test_one_line_each_after_the_settings(path: Path) -> None:
    journal = write(path)
    journal.evaluate(Scaling([1, 3.25], start_tokens=4, attention_factor=1.5), lambda _: 0.1)
    journal.generation(0, np.random.default_rng(0).bit_generator.state)
    header, one, two, state = map(json.loads, path.read_text().splitlines())  # on disk before it is closed
    assert header == {"version": 1, "settings": json.loads(json.dumps(SETTINGS))}
    assert one["factors"] == [1.0, 2.0]
    assert one["loss"] == 1.5
    assert one["seconds"] >= 0
    assert (two["factors"], two["start_tokens"], two["attention_factor"]) == ([1.0, 3.25], 4, 1.5)
    assert state["generation"] == 0
    assert state["rng"] == np.random.default_rng(0).bit_generator.state


def test_nothing_is_evaluated_twice(path: Path) -> None:
    first = write(path).evaluate(Scaling([1, 2]), never)
    again = Journal(path, SETTINGS, resume=True)
    assert again.evaluate(Scaling([1, 2], scheme="another name"), never) == first
    for other in (Scaling([1, 2.01]), Scaling([1, 2], start_tokens=1), Scaling([1, 2], attention_factor=1.1)):
        assert again.evaluate(other, lambda _: 2.0)[0] == 2.0
    assert len(path.read_text().splitlines()) == 5


@pytest.mark.parametrize("loss", [0.1 + 0.2, 1e-300, 123456789.123456789, -3.0, 1 / 3])
def test_losses_and_factors_come_back_bit_for_bit(path: Path, loss: float) -> None:
    scaling = Scaling([1 / 3, math.pi, 1e-8], attention_factor=math.e)
    write(path).evaluate(scaling, lambda _: loss)
    assert Journal(path, SETTINGS, resume=True).evaluate(scaling, never)[0] == loss


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_and_the_worst(path: Path, loss: float) -> None:
    assert write(path).evaluate(Scaling([3, 4]), lambda _: loss)[0] == math.inf
    assert json.loads(path.read_text().splitlines()[-1])["loss"] is None
    assert Journal(path, SETTINGS, resume=True).evaluate(Scaling([3, 4]), never)[0] == math.inf


def test_numpy_losses_are_losses(path: Path) -> None:
    assert write(path).evaluate(Scaling([3, 4]), lambda _: np.float32(0.5))[0] == 0.5
    assert Journal(path, SETTINGS, resume=True).evaluate(Scaling([3, 4]), never)[0] == 0.5


def test_an_existing_journal_is_not_touched_without_resume(path: Path) -> None:
    write(path).close()
    before = path.read_bytes()
    with pytest.raises(LongRopeError, match=r"search.jsonl exists; continue it with --resume"):
        Journal(path, SETTINGS)
    assert path.read_bytes() == before


def test_resume_without_a_journal_begins_one(path: Path) -> None:
    write(path, resume=True)
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"length": 4096}, "length was 2048, now 4096"),
        ({"model": "other"}, "model was 'tiny', now 'other'"),
        ({"seed": 1}, "seed was 0, now 1"),
        ({"space": {"start_tokens": (0,)}}, "space was .*1.*now"),
        ({"dtype": "bfloat16"}, "dtype was None, now 'bfloat16'"),
    ],
)
def test_other_settings_are_named(path: Path, changed: dict[str, object], said: str) -> None:
    write(path).close()
    before = path.read_bytes()
    with pytest.raises(LongRopeError, match=f"other settings: {said}") as raised:
        Journal(path, {**SETTINGS, **changed}, resume=True)
    assert str(raised.value).count(", now ") == 1
    assert path.read_bytes() == before


def test_all_changed_settings_are_named(path: Path) -> None:
    write(path).close()
    fewer = {"model": "other", "length": 2048, "seed": 0}
    with pytest.raises(LongRopeError, match=r"model was 'tiny'.*; space was .*now None"):
        Journal(path, fewer, resume=True)


@pytest.mark.parametrize("version", [2, 99, None, "1"])
def test_another_version_is_refused(path: Path, version: object) -> None:
    write(path).close()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(json.dumps({**json.loads(lines[0]), "version": version}) + "\n" + "".join(lines[1:]))
    with pytest.raises(LongRopeError, match=f"version = {version!r}"):
        Journal(path, SETTINGS, resume=True)


@pytest.mark.parametrize(
    "garbage",
    [
        b"{",
        b"garbage",
        b"\xff\xfe\x00",
        b"5",
        b"null",
        b"[1]",
        b'"loss"',
        b'{"loss": 1.0}',
        b'{"generation": 0}',
        b'{"loss": "x", "seconds": 0, "start_tokens": 0, "attention_factor": 1, "factors": 3}',
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_garbage_in_the_middle_is_an_error_and_stays(path: Path, garbage: bytes, place: int) -> None:
    write(path).evaluate(Scaling([3, 4]), lambda _: 1.0)
    lines = path.read_bytes().splitlines(keepends=True)
    lines.insert(place, garbage + b"\n")
    path.write_bytes(b"".join(lines))
    with pytest.raises(LongRopeError, match=r"search.jsonl"):
        Journal(path, SETTINGS, resume=True)
    assert path.read_bytes() == b"".join(lines)


def test_a_file_that_is_none_of_ours_is_not_cut(path: Path) -> None:
    """A resume pointed at another file must not shorten it as if its last line had been cut."""
    path.write_text('{"text": "one"}\n{"text": "two"}')
    with pytest.raises(LongRopeError, match=r"search.jsonl"):
        Journal(path, SETTINGS, resume=True)
    assert path.read_text() == '{"text": "one"}\n{"text": "two"}'


@pytest.mark.parametrize("nested", ["file/search.jsonl", "file/deep/search.jsonl"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_place_that_cannot_be_written(tmp_path: Path, nested: str, resume: bool) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LongRopeError, match=r"cannot write .*search.jsonl.*-o"):
        Journal(tmp_path / nested, SETTINGS, resume=resume)
    assert (tmp_path / "file").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_where_the_journal_should_be(path: Path) -> None:
    path.mkdir()
    with pytest.raises(LongRopeError, match=r"search.jsonl"):
        Journal(path, SETTINGS, resume=True)


def test_folders_are_made(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "search.jsonl")
    assert (tmp_path / "a" / "b" / "search.jsonl").exists()


def losses_in(data: bytes) -> list[tuple[object, ...]]:
    lines = map(json.loads, data.splitlines())
    return [(line["loss"], line["factors"], line["start_tokens"]) for line in lines if "loss" in line]


def counted(calls: list[Scaling]) -> Callable[[Scaling], float]:
    def objective(scaling: Scaling) -> float:
        calls.append(scaling)
        return quadratic(scaling)

    return objective


def test_the_last_line_cut_at_any_byte_resumes_as_if_nothing_had_been(path: Path) -> None:
    ranked = run_search(path, METHOD, budget=BUDGET).ranked
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    for kept in (0, 1, 2, len(lines) - 1):  # the header, the first candidate, one in between, the last
        start = sum(map(len, lines[:kept]))
        known = len(losses_in(data[:start]))
        for cut in [*range(start, start + len(lines[kept]), 3), start + len(lines[kept]) - 1]:
            path.write_bytes(data[:cut])
            calls: list[Scaling] = []
            outcome = run_search(path, METHOD, objective=counted(calls), budget=BUDGET, resume=True)
            assert outcome.ranked == ranked
            assert len(calls) == BUDGET - known
            assert losses_in(path.read_bytes()) == losses_in(data)


@pytest.mark.parametrize("field", ["state", "has_uint32"])
def test_a_changed_generator_state_is_an_error(path: Path, field: str) -> None:
    run_search(path, METHOD)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    changed = next(line for line in lines if line.get("generation") == 1)
    if field == "state":
        changed["rng"]["state"]["state"] += 1
    else:
        changed["rng"]["has_uint32"] ^= 1
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(LongRopeError, match="generation 1 does not come out as it was written"):
        run_search(path, METHOD, resume=True, objective=never)


def test_the_generator_state_is_in_every_generation(path: Path) -> None:
    run_search(path, METHOD)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    states = [line["rng"] for line in lines if "generation" in line]
    assert [line["generation"] for line in lines if "generation" in line] == list(range(METHOD.generations + 1))
    assert len({json.dumps(state) for state in states}) == len(states)
