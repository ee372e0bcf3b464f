"""Paths that the system refuses end in one line too, and so does a full disk; nothing takes the place of a device."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from transformers.utils.hub import constants

from longrope.cli.main import guarded

LONG = "x" * 300  # as for a folder of another user, the system does not say whether it exists
COMMANDS = {
    "model": ("inspect", LONG),
    "factors": ("fit", LONG),
    "run": ("report", LONG),
    "watched run": ("report", LONG, "--watch"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_path_that_cannot_be_looked_up(refused: Callable[..., None], name: str) -> None:
    refused(f"cannot use {LONG}.*: File name too long", *COMMANDS[name])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_a_full_disk_below_the_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        with Path("/dev/full").open("wb", buffering=0) as output:
            output.write(b"{}")

    with pytest.raises(typer.Exit) as stop:
        guarded(command)()
    assert stop.value.exit_code == 2
    assert capsys.readouterr().err == "error: No space left on device\n"


def test_a_reader_that_has_left_is_typers_matter() -> None:
    def command() -> None:
        reading, writing = os.pipe()
        os.close(reading)
        try:
            os.write(writing, b"{}")
        finally:
            os.close(writing)

    with pytest.raises(BrokenPipeError):
        guarded(command)()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_an_output_that_is_a_device_or_a_pipe(
    refused: Callable[..., None], model: Path, tmp_path: Path, overwrite: tuple[str, ...]
) -> None:
    """Root may replace /dev/null and /dev/stdout by a file."""
    os.mkfifo(tmp_path / "pipe")
    refused("pipe is a device or a pipe", "scale", model, "-l", 128, "-o", tmp_path / "pipe", *overwrite)
    assert (tmp_path / "pipe").is_fifo()


WITHOUT_OUTPUT = {
    "scale": ("MODEL", "-l", 128),
    "fit": ("FACTORS",),
    "compare-factors": ("FACTORS",),
    "plan": ("MODEL", "--to", 128),
    "report": ("RUN",),
}


@pytest.mark.parametrize("command", WITHOUT_OUTPUT)
def test_to_overwrite_no_output_is_refused(
    refused: Callable[..., None], searched: tuple[Path, object], model: Path, command: str
) -> None:
    names = {"MODEL": model, "FACTORS": searched[0] / "extension.json", "RUN": searched[0]}
    words = [names.get(str(word), word) for word in WITHOUT_OUTPUT[command]]
    refused("output is missing: --overwrite would have no effect. Give -o FILE", command, *words, "--overwrite")


def test_a_plan_has_no_output_and_a_watched_run_neither(refused: Callable[..., None], model: Path) -> None:
    refused("plan = 'demo' says all itself: drop --overwrite", "plan", model, "--plan", "demo", "--overwrite")
    refused("watch: it shows one run", "report", model, "--watch", "--overwrite")


def test_a_folder_of_pictures_is_an_output(
    refused: Callable[..., None], searched: tuple[Path, object], tmp_path: Path
) -> None:
    (tmp_path / "figures").touch()
    refused("is not a folder", "report", searched[0], "--figures", tmp_path / "figures", "--overwrite")


def test_a_terminal_obeys_nothing_in_a_file_of_factors(
    cli, searched: tuple[Path, object], model: Path, tmp_path: Path
) -> None:
    fields = json.loads((searched[0] / "extension.json").read_text())
    fields["long"]["provenance"]["note"] = "\x1b[2Jgone"
    (tmp_path / "factors.json").write_text(json.dumps(fields))
    result = cli("scale", model, "--factors", tmp_path / "factors.json")
    assert result.code == 0, result.err
    assert result.err.endswith("factors.json: ?[2Jgone.")


def test_the_root_is_not_a_checkpoint(refused: Callable[..., None], model: Path, tmp_path: Path, cli) -> None:
    factors = tmp_path / "factors.json"
    assert cli("scale", model, "-l", 128, "-o", factors).code == 0
    words = ("export", model, "--factors", factors, "-o", tmp_path.anchor, "--config-only", "--overwrite")
    refused("not a checkpoint that longrope wrote|cannot write", *words)


def test_doctor_reports_a_cache_that_cannot_be_looked_up(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", f"/{LONG}/hub")
    result = cli("doctor", "--json")
    assert result.code == 0, result.err
    assert {line["name"]: line["found"] for line in result.json["machine"]}["models are kept in"] == f"/{LONG}/hub"
