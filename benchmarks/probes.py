"""Probe the servers that are on the PATH, with ``tiny`` extended to 2,048 tokens.

    python benchmarks/probes.py

Each server is launched with the checkpoint as it is, with its factors taken out of the config (or the ``.gguf`` file),
and for L0 tokens only, and ``longrope probe`` asks it. docs/serving.md says how to install the servers. Launches in
``benchmarks/results/probes.json`` are not repeated.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import longrope as lr
from longrope.provenance import provenance
from longrope.storage.atomic import write_json

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from servers.real_servers import SERVERS, RealServer, drop_factors, identity, running, write_gguf

RESULTS = Path(__file__).parent / "results" / "probes.json"
BUILD = Path("build/probes")
LENGTH = 2048
LAUNCHES = ("right", "factors dropped", "too short")


def main() -> None:
    """Probe what is not in the results yet."""
    probes: dict[str, Any] = json.loads(RESULTS.read_text())["probes"] if RESULTS.exists() else {}
    folder, gguf = export_checkpoints()
    for name, server in SERVERS.items():
        for launch in LAUNCHES if server.has_limit else LAUNCHES[:2]:
            key = f"{name}: {launch}"
            if server.path is None or key in probes:
                continue
            path = gguf[launch] if server.gguf else folder[launch]
            probes[key] = probe(server, path, launch, folder["right"])
            print(key, probes[key]["exit code"], probes[key]["departures"], flush=True)
            source = {**provenance(), "command": "probes.py"}
            write_json(RESULTS, {"probes": dict(sorted(probes.items())), "provenance": source})


def export_checkpoints() -> tuple[dict[str, Path], dict[str, Path]]:
    """Write the checkpoints of every launch, and return their folders and their ``.gguf`` files."""
    model, tokenizer = lr.load("tiny", dtype="float32")
    rope = lr.Rope.of(model)
    ramp, options = lr.scheme("ramp", rope, LENGTH), lr.ExportOptions(overwrite=True)
    right, dropped = BUILD / "tiny-2k", BUILD / "tiny-dropped"
    lr.export(model, tokenizer, lr.Extension.of(rope, ramp), right, options=options)
    shutil.copytree(right, dropped, dirs_exist_ok=True)
    drop_factors(dropped)
    files = {
        "right": write_gguf(model, tokenizer, ramp, BUILD / "tiny-2k.gguf"),
        "factors dropped": write_gguf(model, tokenizer, identity(rope, LENGTH), BUILD / "tiny-dropped.gguf"),
    }
    return {"right": right, "factors dropped": dropped, "too short": right}, {**files, "too short": files["right"]}


def probe(server: RealServer, path: Path, launch: str, checkpoint: Path) -> dict[str, Any]:
    """Start a server, ask it with ``longrope probe``, and return its version, the exit code and the result."""
    assert server.path is not None
    length = 256 if launch == "too short" else LENGTH
    version = subprocess.run(server.version(server.path), capture_output=True, text=True, check=True)
    with running(server, path, length, BUILD / "log") as (url, model):
        command = [sys.executable, "-m", "longrope", "probe", url, "--model", model, "--checkpoint", str(checkpoint)]
        completed = subprocess.run([*command, "--json"], capture_output=True, text=True)
    result: dict[str, Any] = json.loads(completed.stdout)
    words = (version.stdout or version.stderr).strip().splitlines()[0]
    launched = {"launched for": length} if server.has_limit else {}
    return {"version": words, **launched, "exit code": completed.returncode, **result, "server": server.program}


if __name__ == "__main__":
    main()
