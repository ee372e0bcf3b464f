"""The dtype that `longrope.search` and `longrope.evaluate` load a named model in."""

from __future__ import annotations

import logging
from pathlib import Path

import families
import pytest
import torch

import longrope as lr
from longrope.cost import bfloat16_speed
from longrope.evaluation.options import EvalOptions
from longrope.search.options import SearchOptions


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """Return a bfloat16 checkpoint with L0 = 64."""
    families.build("llama").to(torch.bfloat16).save_pretrained(tmp_path / "model")
    families.tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


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
