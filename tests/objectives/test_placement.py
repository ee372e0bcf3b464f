"""The dtype that `longrope.search` and `longrope.evaluate` load a named model in."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import families
import pytest
import torch

import longrope as lr
from longrope.cost import bfloat16_speed
from longrope.evaluation.options import EvalOptions
from longrope.models.load import load_config
from longrope.objectives import placement
from longrope.objectives.placement import place_search
from longrope.search.options import SearchOptions
from longrope.search.registry import METHODS


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """Return a bfloat16 checkpoint with L0 = 64."""
    families.build("llama").to(torch.bfloat16).save_pretrained(tmp_path / "model")
    families.tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize(
    ("method", "length", "options", "passes"),
    [
        ("paper", 2048, {"batch_size": 3}, [("forward", 2048, 3)]),
        ("auto", 2048, {"batch_size": 3}, [("forward", 2048, 1), ("gradient", 2048, 1)]),  # in frozen contexts
        ("auto", 256, {"batch_size": 3}, [("forward", 256, 3), ("gradient", 256, 1)]),  # too short for them
        ("cma", 2048, {"batch_size": 3, "workers": "2"}, [("forward", 2048, 3)]),
        ("paper", 2048, {"window": 512}, [("forward", 512, 1)]),
        ("paper", 2048, {"window": 2048}, [("forward", 2048, 1)]),
        ("paper", 2048, {"window": 32, "keep_short": 0.01}, [("forward", 64, 1)]),
        ("paper", 2048, {"window": 32, "keep_short": 0.01, "original_length": 96}, [("forward", 96, 1)]),
    ],
)
def test_memory_is_checked_for_the_passes_that_run(
    checkpoint: str,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    length: int,
    options: dict[str, Any],
    passes: list[tuple[str, int, int]],
) -> None:
    checked = []

    def check(_: object, tokens: int, __: object, *, batch: int = 1, kind: str = "forward") -> None:
        checked.append((kind, tokens, batch))

    monkeypatch.setattr(placement, "check_pass_memory", check)
    config = load_config(checkpoint, original_length=options.get("original_length"))
    place_search(config, length, METHODS[method], SearchOptions(device="cpu", dtype="float32", **options))
    assert checked == passes


@pytest.mark.parametrize(("slowdown", "dtype"), [(5.0, "float32"), (0.5, "bfloat16")])
def test_auto_takes_the_faster_dtype_and_says_why(
    checkpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    slowdown: float,
    dtype: str,
) -> None:
    monkeypatch.setattr(bfloat16_speed, "bfloat16_slowdown", lambda: slowdown)
    (tmp_path / "texts").mkdir()
    for seed in range(9):
        (tmp_path / "texts" / f"{seed}.txt").write_text(" ".join(f"w{(seed * 7 + i * i) % 50}" for i in range(400)))
    caplog.set_level(logging.WARNING, logger="longrope")
    options = SearchOptions(search_documents=1, held_out_documents=1, budget=1000, needles=0)
    lr.search(checkpoint, length=128, data=tmp_path / "texts", output=tmp_path / "run", options=options)
    assert f'"dtype": "torch.{dtype}"' in (tmp_path / "run" / "search-0.jsonl").read_text().splitlines()[0]
    results = lr.evaluate(checkpoint, lengths=[64], data=tmp_path / "texts", options=EvalOptions(documents=1))
    assert results.dtype == dtype
    assert [record.getMessage()[:21] for record in caplog.records] == ["dtype = auto: float32"] * (
        2 if dtype == "float32" else 0
    )
