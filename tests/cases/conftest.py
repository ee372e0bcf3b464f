"""Exports of the cases are reopened in this process."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _reopened_here(reopened_here: object) -> None:
    """Exports are reopened in this process."""
