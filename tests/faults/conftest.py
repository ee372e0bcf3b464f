"""A disk of its own, a process that holds a folder, and the command line run in this process."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest

from longrope.cli.main import main

HOLD = """
import sys
from pathlib import Path
from longrope.storage.lock import locked
with locked(Path(sys.argv[1]), folder=sys.argv[2] == "True"):
    print("held", flush=True)
    sys.stdin.read()
"""


class Disk:
    """A small file system at ``folder``, which may grow or become read-only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def remount(self, options: str) -> None:
        """With other options, such as ``size=20k`` or ``ro``."""
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A tmpfs of 16 MB; skips where mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only Linux' root may mount a tmpfs")
    yield Disk(folder)
    subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def holding(path: Path, *, folder: bool = True) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


@pytest.fixture(scope="session")
def holder() -> Callable[..., object]:
    """A context manager: another process holds an output."""
    return holding


def longrope(*args: object) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with patch.object(sys, "argv", ["longrope", *map(str, args)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, " ".join(err.getvalue().split())


@pytest.fixture(scope="session")
def command() -> Callable[..., tuple[int, str]]:
    """Runs a command: its exit code, and standard error in one line."""
    return longrope


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture(scope="session")
def below() -> Callable[[Path], dict[str, bytes | None]]:
    """All that lies below a folder."""
    return snapshot
