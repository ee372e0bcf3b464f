"""The defaults of Python's search and evaluate are those of the commands."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest

import longrope as lr
from longrope.cli import eval as cli_eval
from longrope.cli import search as cli_search
from longrope.cli.eval_output import CLAIM_TRIALS
from longrope.models.load import choose_device
from longrope.objectives import placement


class ReachedError(Exception):
    """A signal to leave a command once its settings are known."""


def defaults(function: Any) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


def test_search_options(cli: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[Any] = []

    def stop(config: object, length: int, method: object, options: lr.SearchOptions, _: object) -> None:
        given.extend([method, options])
        raise ReachedError

    monkeypatch.setattr(placement, "place_search", stop)
    with pytest.raises(ReachedError):
        cli("search", "tiny", "-l", "512", "-o", str(tmp_path / "run"))
    method, options = given
    ours = lr.SearchOptions()
    assert options == dataclasses.replace(ours, device=choose_device("auto"))
    assert method == ours.method("auto", 512)
    assert ours.device == defaults(cli_search.run)["device"]


def test_eval_options() -> None:
    commands, ours = defaults(cli_eval.run), lr.EvalOptions()
    names = {field.name for field in dataclasses.fields(lr.EvalOptions)} & commands.keys()
    assert {name: getattr(ours, name) for name in sorted(names - {"trials"})} == {
        name: commands[name] for name in sorted(names - {"trials"})
    }
    assert (ours.trials, commands["trials"]) == (CLAIM_TRIALS, None)  # or ten with --quick
    assert ours.seed == commands["data_seed"]
    assert list(ours.measurements) == (commands["measure"] or [])
    rest = {field.name for field in dataclasses.fields(lr.EvalOptions)} - names
    assert rest == {"original", "seed", "measurements", "on_progress"}


@pytest.mark.parametrize(("python", "command"), [(lr.search, cli_search.run), (lr.evaluate, cli_eval.run)])
def test_keywords(python: Any, command: Any) -> None:
    ours, commands = defaults(python), defaults(command)
    same = sorted(ours.keys() & commands.keys() - {"model", "length", "lengths", "method"})
    assert {name: ours[name] or None for name in same} == {name: commands[name] for name in same}
    assert len(same) >= 2
