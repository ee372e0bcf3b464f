from __future__ import annotations

import families
import pytest
from transformers import PreTrainedModel

collect_ignore = ["conftest.py"]  # no doctests in it, and its name is that of others


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    """Random weights, L0 = 64; tests leave it as it was."""
    return families.build("llama")
