from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from searching import SMALL, counted, evaluations, never, search_with, timeless

from longrope.errors import LongRopeError
from longrope.scaling import Scaling
from longrope.search.evolution import Paper
from longrope.search.journal import Journal, context_name
from longrope.search.protocol import CandidateLoss
from longrope.search.space import Space

SETTINGS = {"model": "tiny", "length": 2048, "space": {"start_tokens": (0, 1)}, "seed": 0}
METHOD, BUDGET = Paper(generations=2).with_population(8), 12
ONE, GRADIENT = Scaling([1, 2]), (0.25, -1 / 3, 1e-300)


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
    journal.add((ONE, 0), CandidateLoss(1.5), 0.25, gradient=False)
    return journal


def resumed(path: Path, scaling: Scaling, item: int = 0, *, gradient: bool = False) -> CandidateLoss | None:
    """What a journal that is read again says."""
    journal = Journal(path, SETTINGS, resume=True)
    found = journal.get((scaling, item), gradient=gradient)
    return None if found is None else found[0]


def test_one_line_each_after_the_settings(path: Path) -> None:
    journal = write(path)
    two = Scaling([1, 3.25], start_tokens=4, attention_factor=1.5)
    journal.add((two, 3), CandidateLoss(0.1, GRADIENT), 0.5, gradient=True)
    journal.state(0, np.random.default_rng(0).bit_generator.state)
    header, first, second, state = map(json.loads, path.read_text().splitlines())  # on disk before it is closed
    assert header == {"version": 1, "settings": json.loads(json.dumps(SETTINGS))}
    plain = {"start_tokens": 0, "attention_factor": 1.0, "factors": [1.0, 2.0]}
    assert first == {"item": 0, "loss": 1.5, "seconds": 0.25, **plain}
    more = {"start_tokens": 4, "attention_factor": 1.5, "factors": [1.0, 3.25], "gradient": list(GRADIENT)}
    assert second == {"item": 3, "loss": 0.1, "seconds": 0.5, **more}
    assert state == {"generation": 0, "state": np.random.default_rng(0).bit_generator.state}


def test_what_was_evaluated_is_known(path: Path) -> None:
    journal = write(path)
    for one in (journal, Journal(path, SETTINGS, resume=True)):
        assert one.get((Scaling([1, 2], scheme="another name"), 0), gradient=False) == (CandidateLoss(1.5), 0.25)
        others = (Scaling([1, 2.01]), Scaling([1, 2], start_tokens=1), Scaling([1, 2], attention_factor=1.1))
        assert [one.get((other, 0), gradient=False) for other in others] == [None] * 3
        assert one.get((ONE, 1), gradient=False) is None
        assert one.get((ONE, 0), gradient=True) is None
    assert len(path.read_text().splitlines()) == 2


def test_every_item_has_its_own_answer_with_and_without_a_gradient(path: Path) -> None:
    journal = write(path)
    for item in range(1, 5):
        journal.add((ONE, item), CandidateLoss(item / 7), 0.0, gradient=False)
        journal.add((ONE, item), CandidateLoss(item / 7, (float(item), 0.5, 0.0)), 0.0, gradient=True)
    assert [resumed(path, ONE, item) for item in range(1, 5)] == [CandidateLoss(item / 7) for item in range(1, 5)]
    found = [resumed(path, ONE, item, gradient=True) for item in range(1, 5)]
    assert found == [CandidateLoss(item / 7, (float(item), 0.5, 0.0)) for item in range(1, 5)]


def test_a_loss_in_a_context_is_that_of_this_context_alone(path: Path) -> None:
    journal = write(path)
    two, name = Scaling([1, 3.25]), context_name(ONE)
    journal.add((two, 0), CandidateLoss(0.5), 0.25, gradient=False, context=name)
    journal.add((two, 0), CandidateLoss(0.75, GRADIENT), 0.5, gradient=True, context=name)
    journal.add((two, 0), CandidateLoss(9.0), 9.0, gradient=False, context=name)  # it is known
    lines = [json.loads(line) for line in path.read_text().splitlines()][2:]
    assert [line["context"] for line in lines] == [name, name]
    for one in (journal, Journal(path, SETTINGS, resume=True)):
        assert one.get((two, 0), gradient=False, context=name) == (CandidateLoss(0.5), 0.25)
        assert one.get((two, 0), gradient=True, context=name) == (CandidateLoss(0.75, GRADIENT), 0.5)
        assert one.get((two, 0), gradient=False, context=context_name(two)) is None
        assert one.get((two, 0), gradient=False) is one.get((two, 0), gradient=True) is None
        assert one.get((ONE, 0), gradient=False, context=name) is None
    assert "context" not in json.loads(path.read_text().splitlines()[1])


def test_a_context_is_named_by_all_that_decides_it() -> None:
    others = (ONE, Scaling([1, 2.01]), Scaling([1, 2], start_tokens=1), Scaling([1, 2], attention_factor=1.1))
    assert len({context_name(other) for other in others}) == 4
    assert context_name(Scaling([1, 2], scheme="another name")) == context_name(ONE)
    assert context_name(None) == ""


@pytest.mark.parametrize("loss", [0.1 + 0.2, 1e-300, 123456789.123456789, -3.0, 1 / 3])
def test_losses_and_factors_come_back_bit_for_bit(path: Path, loss: float) -> None:
    scaling = Scaling([1 / 3, math.pi, 1e-8], attention_factor=math.e)
    write(path).add((scaling, 0), CandidateLoss(loss), 0.0, gradient=False)
    assert resumed(path, scaling) == CandidateLoss(loss)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
def test_gradients_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, slopes: list[float]) -> None:
    path = tmp_path_factory.mktemp("journal") / "search.jsonl"
    write(path).add((ONE, 2), CandidateLoss(0.5, tuple(slopes)), 0.0, gradient=True)
    assert resumed(path, ONE, 2, gradient=True) == CandidateLoss(0.5, tuple(slopes))


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_and_the_worst(path: Path, loss: float) -> None:
    journal = write(path)
    journal.add((Scaling([3, 4]), 0), CandidateLoss(loss, (1.0, loss, 2.0)), 0.0, gradient=True)
    last = json.loads(path.read_text().splitlines()[-1])
    assert (last["loss"], last["gradient"]) == (None, [1.0, None, 2.0])
    known = journal.get((Scaling([3, 4]), 0), gradient=True)
    assert known is not None
    assert known[0] == resumed(path, Scaling([3, 4]), gradient=True) == CandidateLoss(math.inf, (1.0, math.inf, 2.0))


def test_times_are_the_same_before_and_after_a_resume(path: Path) -> None:
    journal = write(path)
    journal.add((ONE, 1), CandidateLoss(1.0), 0.123456789, gradient=False)
    again = Journal(path, SETTINGS, resume=True)
    assert again.get((ONE, 1), gradient=False) == journal.get((ONE, 1), gradient=False)


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
        b'{"loss": "x", "item": 0, "seconds": 0, "start_tokens": 0, "attention_factor": 1, "factors": [3]}',
        b'{"loss": 1.0, "item": 0, "seconds": 0, "start_tokens": 0, "attention_factor": 1, "factors": 3}',
        b'{"loss": 1.0, "seconds": 0, "start_tokens": 0, "attention_factor": 1, "factors": [3]}',
        b'{"loss": 1, "item": 0, "gradient": 3, "seconds": 0, "start_tokens": 0, "attention_factor": 1, "factors": []}',
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_garbage_in_the_middle_is_an_error_and_stays(path: Path, garbage: bytes, place: int) -> None:
    write(path).add((Scaling([3, 4]), 0), CandidateLoss(1.0), 0.0, gradient=False)
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


def test_the_last_line_cut_at_any_byte_resumes_as_if_nothing_had_been(path: Path) -> None:
    ranked = search_with(path, METHOD, tokens=BUDGET).ranked
    data, whole = path.read_bytes(), timeless(path)
    lines = data.splitlines(keepends=True)
    for kept in (0, 1, 2, len(lines) - 1):  # the header, the first candidate, one in between, the last
        start = sum(map(len, lines[:kept]))
        known = sum(b'"loss"' in line for line in lines[:kept])
        for cut in [*range(start, start + len(lines[kept]), 3), start + len(lines[kept]) - 1]:
            path.write_bytes(data[:cut])
            calls: list[Scaling] = []
            outcome = search_with(path, METHOD, objective=counted(calls), tokens=BUDGET, resume=True)
            assert outcome.ranked == ranked
            assert len(calls) == BUDGET - known
            assert timeless(path) == whole


def test_a_gradient_cut_in_the_middle_is_taken_off(path: Path) -> None:
    journal = write(path)
    before = path.read_bytes()
    journal.add((ONE, 1), CandidateLoss(1.0, GRADIENT), 0.0, gradient=True)
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b",")])
    assert resumed(path, ONE, 1, gradient=True) is None
    assert path.read_bytes() == before


@pytest.mark.parametrize("field", ["state", "has_uint32"])
def test_a_changed_generator_state_is_an_error(path: Path, field: str) -> None:
    search_with(path, METHOD)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    changed = next(line for line in lines if line.get("generation") == 1)
    if field == "state":
        changed["state"]["state"]["state"] += 1
    else:
        changed["state"]["has_uint32"] ^= 1
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(LongRopeError, match="generation 1 comes out differently than it was written"):
        search_with(path, METHOD, resume=True, objective=never)


@pytest.mark.parametrize("name", ["auto", "gradient"])
def test_a_changed_state_of_any_method_is_an_error(path: Path, name: str) -> None:
    search_with(path, SMALL[name])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    number = {"auto": 7, "gradient": 3}[name]
    changed = next(line for line in lines if line.get("generation") == number)
    changed["state"]["x"][-1] += 1e-9
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(LongRopeError, match=f"generation {number} comes out differently than it was written"):
        search_with(path, SMALL[name], resume=True, objective=never)


@pytest.mark.parametrize("name", SMALL)
def test_a_search_goes_on_where_exp_and_log_round_in_another_way(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As on another processor. All that is paid for is used, and counts with the numbers that the file has."""
    whole = search_with(path, SMALL[name])
    candidate, coordinates = Space.candidate, Space.coordinates

    def rounded_up(space: Space, x: np.ndarray) -> Scaling:
        plain = candidate(space, x)
        return replace(plain, factors=[math.nextafter(factor, math.inf) for factor in plain.factors])

    monkeypatch.setattr(Space, "candidate", rounded_up)
    monkeypatch.setattr(Space, "coordinates", lambda space, one: np.nextafter(coordinates(space, one), 0))
    again = search_with(path, SMALL[name], objective=never, resume=True)
    assert (again.ranked, again.tokens, again.stopped) == (whole.ranked, whole.tokens, whole.stopped)


@pytest.mark.parametrize("name", SMALL)
def test_candidates_that_the_file_lacks_are_an_error(path: Path, name: str) -> None:
    """Before anything is evaluated, though the state is equal."""
    search_with(path, SMALL[name])
    with pytest.raises(LongRopeError, match=r"generation 0 comes out differently .* on the kind of processor, that"):
        search_with(path, SMALL[name], resume=True, objective=never, starts=[Scaling([2.5] * 8)])


def test_a_state_of_an_older_version_may_say_more(path: Path) -> None:
    """CMA-ES wrote a digest of its points once."""
    whole = search_with(path, SMALL["cma"])
    path.write_text(path.read_text().replace('{"generation": 0}', '{"generation": 0, "points": "834099b34421f136"}'))
    assert "points" in path.read_text()
    assert search_with(path, SMALL["cma"], objective=never, resume=True).ranked == whole.ranked


def test_a_state_is_written_once_and_compared_as_json(path: Path) -> None:
    journal = write(path)
    journal.state(7, {"x": (1, 2.5)})
    again = Journal(path, SETTINGS, resume=True)
    for one in (journal, again):
        one.state(7, {"x": [1, 2.5]})
        with pytest.raises(LongRopeError, match="generation 7 comes out differently"):
            one.state(7, {"x": [1, 2.25]})
    assert path.read_text().count("generation") == 1


def test_the_generator_state_is_in_every_generation(path: Path) -> None:
    search_with(path, METHOD)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    states = [line["state"] for line in lines if "generation" in line]
    assert [line["generation"] for line in lines if "generation" in line] == list(range(METHOD.generations + 1))
    assert len({json.dumps(state) for state in states}) == len(states)
    assert len(evaluations(path)) == len(lines) - len(states) - 1
