"""A method from outside: one row in METHODS, then it is used from Python and from the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from searching import ROPE, quadratic
from typer.testing import CliRunner

import longrope as lr
from longrope.cli.main import app
from longrope.cost.model_shape import ModelShape
from longrope.models.load import load_config
from longrope.search.protocol import Proposals
from longrope.stages.plan import parse_plan
from longrope.stages.plan_cost import costs


@dataclass(frozen=True)
class Walk(lr.Method):
    steps: int = 3

    def passes(self, samples: int) -> int:
        return samples * (self.steps + 2)

    def within(self, passes: int, samples: int) -> Walk:
        return replace(self, steps=max(1, passes // samples - 2))

    def with_population(self, population: int) -> Walk:
        return replace(self, steps=population)

    def propose(self, space: lr.Space, starts: Sequence[lr.Scaling], rng: np.random.Generator) -> Proposals:
        x = space.coordinates(starts[0])
        yield lr.CandidateBatch(list(starts))
        for _ in range(self.steps):
            x = np.clip(x + 0.1 * space.unit * rng.normal(size=x.shape), *space.bounds)
            yield lr.CandidateBatch([space.candidate(x)])


class Slope(Walk):
    uses_gradient = True


class Plain(Walk):
    uses_parametrization = False


@pytest.fixture(autouse=True)
def _rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, method in {"walk": Walk(), "slope": Slope(), "plain": Plain()}.items():
        monkeypatch.setitem(lr.METHODS, name, method)


def longrope(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_python_takes_its_name_and_the_method_itself() -> None:
    named = lr.search(quadratic, rope=ROPE, length=2048, method="walk")
    assert named.held_out == lr.search(quadratic, rope=ROPE, length=2048, method=Walk()).held_out
    assert len(named.outcomes[0].ranked) == 5


def test_every_option_of_the_search_works_with_it(tmp_path: Path) -> None:
    few = ("--search-documents", 1, "--held-out-documents", 1, "--needles", 0, "--dtype", "float32")
    research = ("--parametrization", "ramp", "--population", 4, "--budget", "20k", "--attention", "search")
    more = ("--start-tokens", "--patience", 9, "--racing", "--tail", 64, "--also", 256, "--window", 384, "--batch", 2)
    record = json.loads(longrope("search", "tiny", "-l", 512, "--method", "walk", *few, *research, *more, "--schemes",
                                 "pi,yarn", "-o", tmp_path / "run", "--json"))  # fmt: skip
    assert record["method"] == {"Walk": {"steps": 4}}
    settings = json.loads((tmp_path / "run" / "search-0.jsonl").read_text().splitlines()[0])["settings"]
    assert settings["space"]["parametrization"] == "ramp"


def test_a_parametrization_is_refused_by_its_own_member() -> None:
    result = CliRunner().invoke(app, ["search", "tiny", "-l", "512", "--method", "plain", "--parametrization", "ramp"])
    assert result.exit_code == 2
    assert "has no effect on the method plain" in " ".join(result.output.split())


def test_its_gradient_is_counted() -> None:
    """A plan with the gradient method costs more work and memory for the same token-evaluations."""
    shape = ModelShape.of(load_config("tiny"))

    def cost(name: str) -> tuple[int, int, float]:
        plan = parse_plan(f'version = 1\n[[stages]]\nlength = "2k"\nsearch.method = "{name}"\n')
        first = costs(plan, shape, lr.Rope.of(load_config("tiny")))[0]
        return first.search_tokens, first.memory, first.flops

    walk, slope = cost("walk"), cost("slope")
    assert slope[0] == walk[0]
    assert slope[1] > 1.2 * walk[1]
    assert slope[2] != walk[2]
    assert Walk().gradient_steps(4) == 0 < Slope().gradient_steps(4)
