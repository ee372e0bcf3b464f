from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig

from longrope.cost import bfloat16_speed
from longrope.cost.choose_dtype import choose_dtype
from longrope.errors import LongRopeError

SLOW, FAST = 4.2, 1.0


def fits(dtype: str) -> None:
    """Accept every dtype."""


def does_not_fit(dtype: str) -> None:
    raise LongRopeError(f"length = 2048 does not fit in {dtype}")


def choose(requested: str, *, checkpoint: str | None = "bfloat16", device: str = "cpu", check=fits) -> tuple[str, str]:
    return choose_dtype(requested, LlamaConfig(dtype=checkpoint), device, check)


@pytest.fixture
def slow_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfloat16_speed, "bfloat16_slowdown", lambda: SLOW)


@pytest.mark.usefixtures("slow_bfloat16")
def test_auto_is_float32_on_a_cpu_that_is_slow_in_bfloat16() -> None:
    dtype, reason = choose("auto")
    assert dtype == "float32"
    assert (
        reason == "dtype = auto: float32, as this CPU takes 4.2 times as long for a product in bfloat16 as in float32"
    )


@pytest.mark.usefixtures("slow_bfloat16")
def test_auto_stays_bfloat16_where_float32_does_not_fit() -> None:
    dtype, reason = choose("auto", check=does_not_fit)
    assert dtype == "bfloat16"
    assert reason.startswith("dtype = auto: bfloat16, as float32 does not fit into memory; this CPU takes 4.2 times")


@pytest.mark.usefixtures("slow_bfloat16")
def test_a_requested_dtype_is_kept() -> None:
    assert choose("float32") == ("float32", "")
    assert choose("float16") == ("float16", "")
    dtype, reason = choose("bfloat16")
    assert dtype == "bfloat16"
    assert reason.endswith("float32 is faster, in more memory")


@pytest.mark.usefixtures("slow_bfloat16")
@pytest.mark.parametrize("checkpoint", ["float32", "float16"])
def test_other_checkpoints_keep_their_dtype(checkpoint: str) -> None:
    assert choose("auto", checkpoint=checkpoint) == (checkpoint, "")


@pytest.mark.usefixtures("slow_bfloat16")
def test_a_checkpoint_without_a_dtype_is_left_to_transformers() -> None:
    config = LlamaConfig()
    config.dtype = None
    assert choose_dtype("auto", config, "cpu", fits) == ("auto", "")
    config.dtype = torch.float64  # not a dtype that longrope can be asked for
    assert choose_dtype("auto", config, "cpu", fits) == ("auto", "")


@pytest.mark.usefixtures("slow_bfloat16")
def test_only_a_cpu_is_measured() -> None:
    assert choose("auto", device="cuda") == ("bfloat16", "")


def test_a_gpu_without_bfloat16_computes_in_another_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfloat16_speed, "lacks_bfloat16", lambda device: device == "cuda")
    assert choose("auto", device="cuda") == (
        "float32", "dtype = auto: float32, as cuda has no instructions for bfloat16"
    )  # fmt: skip
    dtype, reason = choose("auto", device="cuda", check=does_not_fit)
    assert (dtype, reason.endswith("float32 does not fit into memory")) == ("float16", True)
    assert choose("bfloat16", device="cuda")[0] == "bfloat16"
    assert choose("auto", device="cuda", checkpoint="float16") == ("float16", "")


@pytest.mark.parametrize("requested", ["auto", "bfloat16"])
def test_nothing_changes_on_a_cpu_that_is_fast_in_bfloat16(monkeypatch: pytest.MonkeyPatch, requested: str) -> None:
    monkeypatch.setattr(bfloat16_speed, "bfloat16_slowdown", lambda: FAST)
    assert choose(requested) == ("bfloat16", "")


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(LongRopeError, match="dtype"):
        choose("float8")
