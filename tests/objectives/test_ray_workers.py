"""Ray on this machine: one cluster for all of these tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from searching import (
    BATCHES,
    HERE,
    ITEMS,
    SMALL,
    TOKENS,
    build,
    build_dying,
    build_dying_once,
    build_marking,
    build_refused,
    build_refusing,
    search_with,
    timeless,
)

from longrope.errors import LongRopeError
from longrope.objectives.local_workers import PooledObjective
from longrope.objectives.ray_workers import RayPool

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Actors find the builds of `searching`."""
    path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))


@pytest.fixture
def closing() -> Iterator[list[RayPool]]:
    begun: list[RayPool] = []
    yield begun
    for engine in begun:
        engine.close()


def test_answers_and_searches_are_those_of_this_process(closing: list[RayPool], tmp_path: Path) -> None:
    closing.append(RayPool(build, "ray"))
    shared = PooledObjective(closing[0], ITEMS, TOKENS)
    for gradient in (False, True):
        found = dict(shared.evaluate(BATCHES, gradient=gradient))
        assert found == dict(HERE.evaluate(BATCHES, gradient=gradient))
    next(iter(shared.evaluate(BATCHES, gradient=False)))  # who stops listening can ask again
    for name in SMALL:
        fields = {"batch_size": 2, "racing": True, "seed": 3}
        here = search_with(tmp_path / f"{name}.here", SMALL[name], objective=HERE, **fields)
        there = search_with(tmp_path / f"{name}.there", SMALL[name], objective=shared, **fields)
        assert (there.ranked, there.improvements, there.tokens) == (here.ranked, here.improvements, here.tokens)
        assert set(timeless(tmp_path / f"{name}.there")) == set(timeless(tmp_path / f"{name}.here"))


def test_a_killed_actor_is_replaced(closing: list[RayPool], tmp_path: Path) -> None:
    closing.append(RayPool(partial(build_dying_once, tmp_path, 0), "ray"))
    found = dict(PooledObjective(closing[0], ITEMS, TOKENS).evaluate(BATCHES, gradient=False))
    assert found == dict(HERE.evaluate(BATCHES, gradient=False))
    counts = {path.name: path.read_text().count("\n") for path in tmp_path.iterdir()}
    killed = (tmp_path / "killed").read_text().strip()
    assert counts.pop("killed") == 1
    assert counts.pop(killed) == 0
    assert sum(counts.values()) == len(BATCHES)


def test_actors_that_always_die_are_an_error(closing: list[RayPool]) -> None:
    closing.append(RayPool(build_dying, "ray"))
    with pytest.raises(LongRopeError, match="a Ray worker died and was not restarted"):
        dict(PooledObjective(closing[0], ITEMS, TOKENS).evaluate(BATCHES[:1], gradient=False))


def test_a_refusal_of_an_actor_arrives_with_its_message(closing: list[RayPool]) -> None:
    closing.append(RayPool(build_refusing, "ray"))
    with pytest.raises(LongRopeError, match="out of memory at length 2048; use a shorter one"):
        dict(PooledObjective(closing[0], ITEMS, TOKENS).evaluate(BATCHES, gradient=False))


def test_a_model_that_an_actor_cannot_load_is_the_error(closing: list[RayPool]) -> None:
    closing.append(RayPool(build_refused, "ray"))
    with pytest.raises(LongRopeError, match=r"^there is no such model; look for it$"):
        dict(PooledObjective(closing[0], ITEMS, TOKENS).evaluate(BATCHES, gradient=False))


def test_after_close_no_actor_is_left(tmp_path: Path) -> None:
    engine = RayPool(partial(build_marking, tmp_path), "ray")
    dict(PooledObjective(engine, ITEMS, TOKENS).evaluate(BATCHES, gradient=False))
    engine.close()
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name), 0)


def test_a_cluster_that_is_not_there_is_an_error() -> None:
    with pytest.raises(LongRopeError, match=r"workers = 'ray://127.0.0.1:1': the Ray cluster cannot be reached \("):
        RayPool(build, "ray://127.0.0.1:1")
