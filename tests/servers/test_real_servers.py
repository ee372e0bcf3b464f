"""Probes of servers that people run: a right checkpoint, one without its factors, one launched for too few tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from real_servers import SERVERS, identity, running, write_gguf

from longrope.models.load import load, load_config
from longrope.rope import Rope
from longrope.schemes import scheme
from longrope.servers.client import connect
from longrope.servers.probe import ServerProbe, probe_server
from longrope.servers.served_sets import ServedSets

pytestmark = pytest.mark.real
LENGTHS = (128, 256, 288, 512)


@pytest.fixture(scope="module", params=SERVERS)
def probe(request, tiny, checkpoint, documents, tmp_path_factory) -> Callable[..., ServerProbe]:
    """Function (checkpoint, launched length) that starts the server and probes it."""
    server = SERVERS[request.param]
    if server.path is None:
        needs = f" with {', '.join(server.needs)}" if server.needs else ""
        pytest.skip(f"{server.program}{needs} is not installed")
    folder, rope = tmp_path_factory.mktemp("real"), Rope.of(tiny[0])
    model = load(str(checkpoint("static")), dtype="float32")[0]

    def path(mode: str) -> Path:
        if not server.gguf:
            return checkpoint(mode)
        scaling = identity(rope, 512) if mode == "dropped" else scheme("ramp", rope, 512)
        return write_gguf(*tiny, scaling, folder / f"{mode}.gguf")

    def run(mode: str, length: int) -> ServerProbe:
        with running(server, path(mode), length, folder / "log") as (url, name):
            return probe_server(
                connect(url, name),
                ServedSets.of(load_config(str(checkpoint("static")))),
                tiny[1],
                documents,
                LENGTHS,
                open_model=lambda: model,
                on_progress=lambda *_: None,
            )

    run.server = server  # pyright: ignore
    return run


def test_a_right_checkpoint_computes_as_made(probe) -> None:
    result = probe("static", 512)
    assert result.ok, result.departures
    assert all("longrope" in row.runs for row in result.lengths)
    if result.has_logprobs:
        assert max(row.distances["longrope"] for row in result.lengths) < 0.02
    else:
        assert result.lengths[-1].recalled == 1


def test_dropped_factors_are_seen(probe) -> None:
    result = probe("dropped", 512)
    assert not result.ok
    assert result.lengths[-1].runs == ("original",)
    assert all("original" in row.runs for row in result.lengths)


def test_a_launch_for_too_few_tokens_is_seen(probe) -> None:
    if not probe.server.has_limit:
        pytest.skip(f"{probe.server.program} is not launched for a length")
    result = probe("static", 256)
    assert [row.ok for row in result.lengths] == [True, True, False, False]
    assert "refuses the prompt" in result.departures[0]
