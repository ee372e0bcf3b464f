"""How the command line starts and stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gguf_files import plain

from longrope.cli.main import COMMANDS, HUGE_PAGES
from longrope.formats.load_factors import load_factors

LONGROPE = [sys.executable, "-c", "from longrope.cli.main import main; main()"]


@pytest.mark.parametrize(
    "wrong", [("inspect", "x", "--bogus"), ("bogus",), ("inspect",), ("eval", "x", "--batch", "0")]
)
def test_what_typer_refuses(cli, wrong: tuple[str, ...]) -> None:
    result = cli(*wrong)
    assert result.code == 2
    assert "Usage" in result.err


def test_help_names_every_command(cli) -> None:
    text = cli("--help").out
    for name in COMMANDS:
        assert f" {name} " in text
        assert cli(name, "-h").code == 0


def test_help_loads_nothing_heavy() -> None:
    script = """
import sys
from longrope.cli.main import COMMANDS, main
for arguments in (["--help"], *([name, "--help"] for name in COMMANDS)):
    sys.argv = ["longrope", *arguments]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
heavy = {"torch", "transformers", "numpy", "pydantic", "pyarrow", "altair", "cmaes", "ray"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


def test_importing_longrope_loads_nothing_heavy() -> None:
    script = "import sys, longrope; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in (HUGE_PAGES / "enabled").read_text(),
    reason="Linux gives no huge pages here",
)
def test_commands_get_large_tensors_in_huge_pages() -> None:
    script = """
import longrope.cli.main as command_line
def command():
    import torch
    held = torch.ones(2**26)
    with open("/proc/self/smaps_rollup") as lines:
        print(next(line for line in lines if line.startswith("AnonHugePages")).split()[1])
command_line.app = command
command_line.main()
"""
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert int(done.stdout) > 2**17, done.stderr  # kB: half of the tensor's 256 MiB
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=-1, text=True, env=environment | {"THP_MEM_ALLOC_ENABLE": "0"}
    )
    if "[madvise]" in (HUGE_PAGES / "enabled").read_text():
        assert int(done.stdout) < 2**15  # the user's own setting holds


def test_libraries_draw_no_bars(cli, tmp_path: Path) -> None:
    """transformers draws one for the tensors of a GGUF."""
    source, factors = plain(tmp_path / "plain.gguf"), tmp_path / "yarn.json"
    assert cli("scale", source, "-l", 512, "--scheme", "yarn", "-o", factors).code == 0
    command = [*LONGROPE, "generate", source, "a", "--factors", factors, "--max-new-tokens", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_an_error_leaves_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run([*LONGROPE, "inspect", str(tmp_path / "nowhere")], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: model = ")
    assert "Traceback" not in done.stderr


def test_ctrl_c_leaves_the_best_so_far_and_a_resume_goes_on(
    cli, model: Path, few: tuple[object, ...], tmp_path: Path
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    command = ("search", model, "-l", 300, *few, "--seeds", 3, "--method", "simple")
    process = subprocess.Popen(
        [*LONGROPE, *map(str, command), "-o", str(run)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    deadline = time.monotonic() + 120
    while not (run / "best.json").exists() or (run / "search-0.jsonl").read_bytes().count(b"\n") < 20:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert not (run / "extension.json").exists()
    load_factors(run / "best.json")
    known = [line for line in (run / "search-0.jsonl").read_text().splitlines() if line.endswith("}")]
    limited = ("--budget", 300 * (len(known) + 20))
    assert cli(*command, *limited, "-o", run, "--resume").code == 0
    assert cli(*command, *limited, "-o", whole).code == 0
    losses = []
    for folder in (run, whole):
        lines = [json.loads(line) for line in (folder / "search-0.jsonl").read_text().splitlines()]
        losses.append([(line["loss"], line["factors"]) for line in lines if "loss" in line])
    assert len(losses[0]) > len(known)
    assert losses[0] == losses[1]
    assert (run / "extension.json").read_bytes() == (whole / "extension.json").read_bytes()
