from __future__ import annotations

import families
import pytest
from transformers import PreTrainedModel


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    """Random weights, L0 = 64; tests leave it as it was."""
    return families.build("llama")
