"""The demo's run, once for all tests that need it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of ``longrope demo`` (minutes)."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    subprocess.run([sys.executable, "-m", "longrope", "demo", "-o", folder], check=True, capture_output=True)
    return folder
