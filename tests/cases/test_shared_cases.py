"""The scripts of ``../shared/cases``, run with the installed command; skipped where the folder does not exist."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted(Path(__file__).parents[3].glob("shared/cases/*/run.sh"))
LONGROPE = Path(sys.executable).with_name("longrope")

pytestmark = pytest.mark.real


@pytest.mark.skipif(not LONGROPE.exists(), reason="the command longrope is not installed beside this Python")
@pytest.mark.parametrize("script", SCRIPTS, ids=[script.parent.name for script in SCRIPTS])
def test_the_case_is_right(script: Path) -> None:
    finished = subprocess.run(
        ["bash", script], capture_output=True, text=True, env={**os.environ, "LONGROPE": str(LONGROPE)}, check=False
    )
    assert (finished.returncode, finished.stdout.splitlines()[-1:]) == (0, ["right"]), finished.stdout + finished.stderr
