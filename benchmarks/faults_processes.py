"""Processes to kill, and the files that they leave: for ``faults.py``."""

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
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import longrope.cli.main as command_line


def log(folder: Path) -> Path:
    """Return the path of what a command prints."""
    return folder.with_name(f"{folder.name}.log")


def environment(folder: Path) -> dict[str, str]:
    """Make a home and a folder for temporary files, and return the variables that lead a command there."""
    folders = {"HOME": folder / "home", "TMPDIR": folder / "tmp"}
    for path in folders.values():
        path.mkdir(parents=True, exist_ok=True)
    return {name: str(path) for name, path in folders.items()} | {"TOKENIZERS_PARALLELISM": "false"}


def forked(words: Sequence[str], folder: Path) -> int:
    """Begin a command in a fork of this process, and return its process id."""
    variables = environment(folder)
    if pid := os.fork():
        return pid
    os.setsid()
    os.chdir(folder)
    os.environ |= variables
    tempfile.tempdir = None
    output = os.open(log(folder), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
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


def spawned(words: Sequence[str], folder: Path) -> int:
    """Begin a command in a new process, and return its process id."""
    with log(folder).open("ab") as output:
        command = [sys.executable, "-m", "longrope", *words]
        variables = os.environ | environment(folder)
        return subprocess.Popen(
            command, cwd=folder, env=variables, stdout=output, stderr=output, start_new_session=True
        ).pid


def ended(pid: int, after: float | None) -> int:
    """Return the exit code of a process; kill it with its children if it still runs after some seconds."""
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


def signature(folder: Path) -> dict[str, str]:
    """Return everything below a folder: a digest of each file without seconds and dates."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(content(path)).hexdigest()[:16] if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def content(path: Path) -> bytes:
    """Return the content of a file that must be equal."""
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return json.dumps([{key: value for key, value in line.items() if key != "seconds"} for line in lines]).encode()
    if path.name in ("run.json", "results.json", "training.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        values = {key: value for key, value in record.items() if key not in ("seconds", "provenance")}
        return json.dumps(values).encode()
    return b"" if path.name in ("progress.log", "report.html") else path.read_bytes()  # which say when


def differences(digests: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Return the files that are missing, additional, or not equal."""
    return [name for name in sorted({*digests, *expected}) if digests.get(name) != expected.get(name)]
