"""On a CUDA device: what the CPU gives, in the memory that is foreseen, resumed where it was killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from families import build, tokens
from torch import Tensor
from transformers import PreTrainedModel

from longrope.cost import peak_memory
from longrope.cost.device_speed import measure_device_speed
from longrope.cost.model_shape import ModelShape
from longrope.data.weighted_text import WeightedText
from longrope.errors import LongRopeError
from longrope.longcontext import cpu_offload
from longrope.longcontext import tiling as tiled_module
from longrope.longcontext.attention import attend
from longrope.longcontext.tiling import tiled_layers
from longrope.longcontext.token_losses import token_losses
from longrope.models.load import load
from longrope.models.patch import patch
from longrope.models.rotary_embedding import LongRoPE
from longrope.objectives.model_loss import ModelObjective
from longrope.rope import Rope
from longrope.schemes import scheme
from longrope.search.protocol import CandidateLoss

pytestmark = pytest.mark.gpu
LENGTH = 150
WINDOWS = {"mistral": {"sliding_window": 40}, "gemma2": {"sliding_window": 9, "attn_logit_softcapping": 2.0}}


def hidden(model: PreTrainedModel, x: Tensor, piece: int = 28) -> Tensor:
    with torch.no_grad(), tiled_layers(model, piece):
        return model.base_model(input_ids=x.to(model.device), use_cache=False).last_hidden_state.float().cpu()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.15)])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_pieces_give_what_they_give_on_the_cpu(family: str, rows: int, dtype: torch.dtype, bound: float) -> None:
    model, x = build(family, **WINDOWS.get(family, {})), tokens(rows, LENGTH)
    wanted = hidden(model, x)
    found = hidden(model.to("cuda", dtype), x)
    assert (found - wanted).square().mean().sqrt() <= bound * wanted.square().mean().sqrt()


def slopes(model: PreTrainedModel, length: int) -> CandidateLoss:
    ids = np.random.default_rng(0).integers(3, families.VOCABULARY, length)
    objective = ModelObjective(model, [WeightedText(ids, np.full(length - 1, 1 / (length - 1)))])
    yarn = scheme("yarn", Rope.of(model), 4 * Rope.of(model).original_length)
    return next(iter(objective.evaluate([[(yarn, 0)]], gradient=True)))[1][0]


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("tokens_", [17000, 90000])
def test_kernels_joined_over_blocks_of_keys(heads: int, tokens_: int) -> None:
    """Outputs and gradients, against float32 at once; more blocks than one."""
    drawn = [torch.randn(1, count, size, 64, device="cuda") for count, size in ((4, 3000), *[(heads, tokens_)] * 2)]
    drawn = [one.bfloat16().requires_grad_() for one in drawn]
    exact = [one.detach().float().requires_grad_() for one in drawn]
    found = attend(torch.nn.Identity(), *drawn, None)[0]
    wanted = attend(torch.nn.Identity(), *exact, None)[0]
    by = torch.randn_like(wanted)
    for one, other in zip(
        (found, *torch.autograd.grad(found, drawn, by.bfloat16())),
        (wanted, *torch.autograd.grad(wanted, exact, by)),
        strict=True,
    ):
        assert (one.float() - other).norm() < 0.01 * other.norm()


@pytest.mark.parametrize("gradient", [False, True])
def test_what_waits_may_wait_in_main_memory(gradient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama").to("cuda")
    x = tokens(1, 60000).numpy()

    def work() -> object:
        return slopes(model, 60000).gradient if gradient else token_losses(model, x)

    wanted, took = work(), torch.cuda.max_memory_allocated
    torch.cuda.reset_peak_memory_stats()
    work()
    before = took()
    monkeypatch.setattr(cpu_offload, "SHARE", 10**9)
    torch.cuda.reset_peak_memory_stats()
    np.testing.assert_allclose(work(), wanted, rtol=1e-2, atol=1e-4)
    assert took() < before - 60000 * 64 * 4 * (2 if gradient else 1) * 0.9


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "gpt_neox", "qwen3"])
def test_gradients_by_the_factors(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled_module, "chunk_size_on", lambda _: 2048)
    model = build(family, **WINDOWS.get(family, {}))
    wanted = slopes(model, 5000)  # more than a piece
    found = slopes(model.to("cuda"), 5000)
    assert found.loss == pytest.approx(wanted.loss, rel=1e-4)
    np.testing.assert_allclose(found.gradient, wanted.gradient, rtol=1e-2, atol=1e-2 * np.abs(wanted.gradient).max())


def test_phases_are_exact_to_two_million() -> None:
    rope = Rope(dim=64, base=1e4, original_length=4096)
    scaling, length = scheme("yarn", rope, 2**21), 2**21
    at = np.unique(np.r_[np.random.default_rng(0).integers(0, length, 5000), 0, length - 1])
    embedding = LongRoPE.static(rope, [scaling], reach=length).to("cuda")
    cos, sin = embedding(torch.zeros(1, device="cuda"), torch.from_numpy(at)[None].cuda())
    phases = at[:, None].astype(np.longdouble) * scaling.inv_freq(rope).astype(np.longdouble)
    for found, wanted in ((cos, np.cos(phases)), (sin, np.sin(phases))):
        error = np.abs(found[0, :, : len(wanted[0])].cpu().numpy() - scaling.attention_factor * wanted)
        assert error.max() < 1e-6 * scaling.attention_factor


def peak(model: PreTrainedModel, length: int, *, gradient: bool) -> int:
    """Bytes allocated at once, the weights among them; the workspace of products is there before."""
    for size in (2048, length):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        if gradient:
            slopes(model, size)
        else:
            with patch(model, scheme("yarn", Rope.of(model), size)):
                token_losses(model, tokens(1, size).numpy())
    return torch.cuda.max_memory_allocated() - before + model.get_memory_footprint()


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("length", [32768, 131072])
def test_memory_is_what_is_foreseen(length: int, gradient: bool) -> None:
    model, _ = load("tiny", dtype="bfloat16", device="cuda")
    foreseen = peak_memory.of_pass(ModelShape.of(model.config, "bfloat16", "cuda"), length, gradient=gradient)
    assert peak(model, length, gradient=gradient) == pytest.approx(foreseen, rel=0.25)


def test_running_out_of_memory_is_said() -> None:
    model, _ = load("tiny", dtype="bfloat16", device="cuda")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.002)
    try:
        with pytest.raises(LongRopeError, match="out of memory at length 524288 with batch 1 on cuda"):
            token_losses(model, tokens(1, 2**19).numpy())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_rates_of_a_device() -> None:
    model, _ = load("tiny")
    rates = measure_device_speed(model.config, device="cuda", dtype="bfloat16")
    assert 1e9 < rates.linear < 1e16
    assert 1e9 < rates.attention < 1e16


def command(*words: object) -> list[str]:
    return [sys.executable, "-c", "from longrope.cli.main import main; main()", *map(str, words), "--device", "cuda"]


def ran(words: list[str]) -> str:
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def search(run: Path, *more: object) -> list[str]:
    few = ("--search-documents", 1, "--held-out-documents", 1, "--population", 12, "--method", "gradient")
    return command("search", "tiny", "--length", "2k", *few, "-o", run, *more)


def test_a_killed_search_goes_on(tmp_path: Path) -> None:
    """Kernels add in an order of their own: equal to rounding, not by the bit."""
    ran(search(tmp_path / "whole"))
    process = subprocess.Popen(search(tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal, deadline = tmp_path / "killed" / "search-0.jsonl", time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < 8:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    before = journal.read_bytes()
    ran(search(tmp_path / "killed", "--resume"))
    assert journal.read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    whole, resumed = (
        json.loads((tmp_path / name / "extension.json").read_text())["long"]["factors"] for name in ("whole", "killed")
    )
    np.testing.assert_allclose(resumed, whole, rtol=0.02)


def test_workers_share_a_card(tmp_path: Path) -> None:
    done = ran(search(tmp_path / "run", "--workers", 2, "--json"))
    assert len(json.loads(done)["factors"]) == 32


def test_a_plan_runs_whole(tmp_path: Path) -> None:
    """Search, fine-tuning in bfloat16, recovery, evaluation."""
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'version = 1\n[[stages]]\nlength = "1k"\n[stages.search]\nbudget = "40k"\ndocuments = 1\n'
        '[stages.finetune]\nsteps = 3\nbatch = 1\ndtype = "bfloat16"\n'
        '[recovery.search]\nbudget = "20k"\ndocuments = 1\n'
        '[evaluation]\nlengths = ["1k"]\ndocuments = 1\nschemes = ["pi"]\n'
    )
    ran(command("extend", "tiny", plan, "-o", tmp_path / "run"))
    made = command("generate", tmp_path / "run" / "checkpoint", "def add(a, b):", "--max-new-tokens", 4)
    assert ran(made)
