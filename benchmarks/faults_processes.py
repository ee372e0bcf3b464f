"""Processes that are killed, and what is left of them: for ``faults.py``."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path

import longrope.cli.main as command_line


def log(place: Path) -> Path:
    """Where what a command prints is kept."""
    return place.with_name(f"{place.name}.log")


def surroundings(place: Path) -> dict[str, str]:
    """Variables by which everything that a command might leave is in its place; they are made."""
    found = {"HOME": place / "home", "TMPDIR": place / "tmp"}
    for path in found.values():
        path.mkdir(parents=True, exist_ok=True)
    return {name: str(path) for name, path in found.items()} | {"TOKENIZERS_PARALLELISM": "false"}


def forked(words: tuple[str, ...], place: Path) -> int:
    """Begin a command in a fork of this process: its number."""
    variables = surroundings(place)
    if pid := os.fork():
        return pid
    os.setsid()
    os.chdir(place)
    os.environ |= variables
    tempfile.tempdir = None
    output = os.open(log(place), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["longrope", *words]
    try:
        command_line.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def spawned(words: tuple[str, ...], place: Path) -> int:
    """Begin a command in a process of its own: its number."""
    with log(place).open("ab") as output:
        command = [sys.executable, "-m", "longrope", *words]
        variables = os.environ | surroundings(place)
        return subprocess.Popen(
            command, cwd=place, env=variables, stdout=output, stderr=output, start_new_session=True
        ).pid


def ended(pid: int, after: float | None) -> int:
    """The exit code of a process, which is killed with its children after so many seconds if it still runs."""
    deadline = None if after is None else time.monotonic() + after
    while deadline is not None:
        if (done := os.waitpid(pid, os.WNOHANG))[0]:
            return os.waitstatus_to_exitcode(done[1])
        left = deadline - time.monotonic()
        if left <= 0:
            with suppress(ProcessLookupError):  # it has not made its group yet
                os.killpg(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
            break
        time.sleep(min(left, 0.002))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def signature(place: Path) -> dict[str, str]:
    """Everything below a place: a digest of each file without seconds and dates."""
    return {
        str(path.relative_to(place)): hashlib.sha256(content(path)).hexdigest()[:16] if path.is_file() else "folder"
        for path in sorted(place.rglob("*"))
    }


def content(path: Path) -> bytes:
    """What must be equal in a file."""
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return json.dumps([{key: value for key, value in line.items() if key != "seconds"} for line in lines]).encode()
    if path.name in ("run.json", "results.json", "training.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: value for key, value in record.items() if key not in ("seconds", "provenance")}
        return json.dumps(kept).encode()
    return path.read_bytes()


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """The files that are missing, too many, or not equal."""
    return [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
