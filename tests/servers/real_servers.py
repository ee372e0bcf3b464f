"""Servers that people run, each started by the command on the PATH, and checkpoints of ``tiny`` to start them with."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from longrope.errors import LongRopeError
from longrope.export.exporter import ExportOptions
from longrope.export.registry import export
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.servers.client import Server
from longrope.servers.completion import complete

SECONDS = 900  # for a start, which takes vLLM minutes on a busy machine


@dataclass(frozen=True)
class RealServer:
    """A program that serves a checkpoint.

    Args:
        program: Name of the program on the PATH.
        command: Function (program, checkpoint, length in tokens, port) that returns its command line.
        version: Function (program) that returns the command line that prints its version.
        gguf: Whether it takes a ``.gguf`` file instead of a folder.
        has_limit: Whether it is launched for a length.
        needs: Packages that it needs in this Python.
    """

    program: str
    command: Callable[[str, Path, int, int], list[str]]
    version: Callable[[str], list[str]]
    gguf: bool = False
    has_limit: bool = True
    needs: tuple[str, ...] = ()

    @property
    def path(self) -> str | None:
        """The program's file; None if it is not installed."""
        if any(importlib.util.find_spec(package) is None for package in self.needs):
            return None
        return shutil.which(self.program) or shutil.which(self.program, path=str(Path(sys.executable).parent))


def _python_version(package: str) -> Callable[[str], list[str]]:
    code = f"import importlib.metadata as m; print(m.version('{package}'))"
    return lambda program: [str(Path(program).parent / "python"), "-c", code]


SERVERS = {
    "llama.cpp": RealServer(
        "llama-server",
        lambda program, path, length, port: [
            *(program, "-m", str(path), "-c", str(length), "--port", str(port), "-np", "1", "-t", "1", "-ngl", "0")
        ],
        lambda program: [program, "--version"],
        gguf=True,
    ),
    "transformers serve": RealServer(
        "transformers",
        lambda program, path, length, port: [
            *(program, "serve", str(path), "--port", str(port), "--device", "cpu", "--dtype", "float32")
        ],
        _python_version("transformers"),
        has_limit=False,
        needs=("fastapi", "uvicorn", "openai"),
    ),
    "vllm": RealServer(
        "vllm",
        lambda program, path, length, port: [
            *(program, "serve", str(path), "--max-model-len", str(length), "--port", str(port)),
            *("--dtype", "float32", "--enforce-eager", "--max-num-seqs", "2"),
        ],
        _python_version("vllm"),
    ),
    "mlx-lm": RealServer(
        "mlx_lm.server",
        lambda program, path, length, port: [program, "--model", str(path), "--port", str(port)],
        _python_version("mlx-lm"),
        has_limit=False,
    ),
}


@contextmanager
def running(server: RealServer, checkpoint: Path, length: int, log: Path) -> Iterator[tuple[str, str]]:
    """Start a server on the CPU, and yield its address and the name of its model once it answers.

    Args:
        server: Server to start.
        checkpoint: Folder or ``.gguf`` file.
        length: Length in tokens to launch it for.
        log: File for its output.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert server.path is not None
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment |= {"VLLM_NO_USAGE_STATS": "1", "PATH": f"{Path(server.path).parent}:{os.environ['PATH']}"}
    if not server.needs:  # it has a Python of its own, or none
        environment.pop("PYTHONPATH", None)
    with log.open("wb") as output:
        process = _start(server.command(server.path, checkpoint, length, port), environment, output)
        try:
            _wait(Server(f"http://127.0.0.1:{port}/v1", str(checkpoint), retries=0), process, log)
            yield f"http://127.0.0.1:{port}", str(checkpoint)
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # the processes that this one started are in its group
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _start(command: list[str], environment: dict[str, str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            complete(server, "def main():", tokens=1)
            return
        except LongRopeError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{error}: {log.read_text(errors='replace')[-2000:]}") from None
        time.sleep(0.5)


def write_gguf(model: Any, tokenizer: Any, scaling: Scaling, path: Path) -> Path:
    """Write a ``.gguf`` file with one set of factors."""
    extension = Extension(rope=Rope.of(model), short=scaling, long=scaling, length=scaling.length or 0)
    export(model, tokenizer, extension, path, to="gguf", options=ExportOptions(overwrite=True))
    return path


def identity(rope: Rope, length: int) -> Scaling:
    """Return factors of 1 for a length, which compute the plain rope."""
    return Scaling([1.0] * (rope.dim // 2), length=length)


def drop_factors(folder: Path) -> Path:
    """Take the rope scaling out of a checkpoint's config, and leave its lengths."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    del config["rope_scaling"]
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
