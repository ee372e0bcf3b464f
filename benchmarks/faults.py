"""Kill search, extend, eval and export at random moments, resume, and compare with uninterrupted runs.

    make benchmark-faults                    # 200 rounds, half an hour on an idle core; continues where it stopped
    python benchmarks/faults.py --rounds 4 --folder /tmp/faults --results /tmp/faults.json

A round runs one command on ``tiny`` in a folder of its own and kills it, with its children, up to three times. The
moments are uniform over the seconds that the command takes. Then it runs to its end. The folder must then be as after
an uninterrupted run: the same files, bit-equal apart from seconds and dates. Most runs are forked from this process,
because imports would take most of the time. Every tenth round starts new processes and kills them from their first
millisecond on. Results in ``benchmarks/results/faults.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # read at the imports below

import torch
from faults_commands import COMMANDS, prepare
from faults_processes import differences, ended, forked, log, signature, spawned

from longrope.provenance import provenance
from longrope.stages import finetune, pipeline  # noqa: F401  so that forks need not import them
from longrope.storage.atomic import write_json
from longrope.storage.jsonl import JsonlFile
from longrope.storage.lock import locked

RESULTS = Path(__file__).parent / "results" / "faults.json"
ORDER = "search,eval,export,search,eval,export,extend,sparse"  # in turn
OWN = 0.1  # share of the rounds in new processes


@dataclass(frozen=True)
class Reference:
    """The files of an uninterrupted run by digest, and its seconds."""

    signature: dict[str, str]
    seconds: float


def main() -> None:
    """Run all rounds that are not in the journal yet, then write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default=ORDER)
    parser.add_argument("--folder", type=Path, default=Path("build/faults"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder, names = arguments.folder.resolve(), arguments.commands.split(",")
    with locked(folder):
        settings = {"seed": arguments.seed, "commands": names}
        with closing(JsonlFile(folder / "rounds.jsonl", settings, subject="a fault injection", resume=True)) as lines:
            prepare(folder)
            rounds, by_name, imports = lines.lines, references(folder, names), seconds_of_imports()
            for number in range(len(rounds), arguments.rounds):
                name = names[number % len(names)]
                rounds.append(one_round(folder, number, arguments.seed, name, by_name[name], imports))
                lines.append(rounds[-1])
                print(json.dumps(rounds[-1]), flush=True)
    write_json(arguments.results, summary(rounds, arguments.seed) | {"provenance": provenance()})
    if not all(line["equal"] for line in rounds):
        raise SystemExit(f"not equal: see {folder}")


def references(folder: Path, names: list[str]) -> dict[str, Reference]:
    """Run every command twice without interruption; return what it leaves, which must be the same, and its seconds."""
    by_name = {}
    for name in dict.fromkeys(["search", *names]):
        seconds, signatures = [], []
        for folder_of_run in (folder / name, folder / f"{name}-again"):
            shutil.rmtree(folder_of_run, ignore_errors=True)
            began = time.monotonic()
            code = ended(forked(COMMANDS[name].line.split(), folder_of_run), None)
            seconds.append(time.monotonic() - began)
            assert code == 0, f"{name} ended with {code}; see {log(folder_of_run)}"
            signatures.append(signature(folder_of_run))
        assert signatures[0] == signatures[1], f"two runs of {name} differ: {differences(*signatures)}"
        by_name[name] = Reference(signatures[0], min(seconds))
        print(f"{name}: {seconds[0]:.1f} s, {seconds[1]:.1f} s", flush=True)
    return by_name


def seconds_of_imports() -> float:
    """Return the seconds that a process takes before it begins to work."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import longrope.stages.pipeline"], check=True)
    return time.monotonic() - began


def one_round(folder: Path, number: int, seed: int, name: str, reference: Reference, imports: float) -> dict[str, Any]:
    """Kill a command up to three times, let it end, and compare."""
    rng, command, folder_of_run = random.Random(f"{seed} {number}"), COMMANDS[name], folder / f"round-{number}"
    shutil.rmtree(folder_of_run, ignore_errors=True)
    start, more = (spawned, imports) if rng.random() < OWN else (forked, 0.0)
    kills, words = [], command.line.split()
    for _ in range(rng.randint(1, 3)):
        after = rng.random() * (reference.seconds + more)
        code = ended(start(words, folder_of_run), after)
        if code != -signal.SIGKILL:
            assert code == 0, f"round {number}: {name} ended with {code}; see {log(folder_of_run)}"
        reached = [phase for mark, phase in command.marks.items() if (folder_of_run / mark).exists()]
        kills.append({"after": round(after, 3), "phase": (reached or ["start"])[-1], "killed": code != 0})
        words = [*command.line.split(), command.again]
    code = ended(start(words, folder_of_run), None)
    different = differences(signature(folder_of_run), reference.signature)
    line = {"round": number, "command": name, "start": start.__name__, "kills": kills, "code": code}
    line |= {"equal": code == 0 and not different, "differences": different}
    if line["equal"]:
        shutil.rmtree(folder_of_run)
        log(folder_of_run).unlink()
    return line


def summary(rounds: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Return counts by command and by the phase in which it was killed."""
    commands: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(line["command"] for line in rounds):
        rounds_of_command = [line for line in rounds if line["command"] == name]
        kills = [kill for line in rounds_of_command for kill in line["kills"]]
        killed = Counter(kill["phase"] for kill in kills if kill["killed"])
        commands[name] = {
            "rounds": len(rounds_of_command),
            "in_processes_of_their_own": sum(line["start"] == "spawned" for line in rounds_of_command),
            "killed": sum(killed.values()),
            "had_ended_before": len(kills) - sum(killed.values()),
            "killed_in": dict(sorted(killed.items())),
            "not_equal": sum(not line["equal"] for line in rounds_of_command),
        }
    not_equal, kills = (sum(row[field] for row in commands.values()) for field in ("not_equal", "killed"))
    return {"seed": seed, "rounds": len(rounds), "not_equal": not_equal, "kills": kills, "commands": commands}


if __name__ == "__main__":
    main()
