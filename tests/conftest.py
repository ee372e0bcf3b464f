"""What every test runs under: no network, quiet transformers, the same hypothesis examples each time."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported

from hypothesis import settings

settings.register_profile("longrope", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("longrope")
