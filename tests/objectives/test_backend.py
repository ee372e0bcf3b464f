from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import families
import numpy as np
import pytest
import torch

from longrope.data.weighted_text import perplexity_texts
from longrope.errors import LongRopeError
from longrope.models.load import load
from longrope.objectives.backend import EvaluationBackend, open_backend
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.schemes import scheme
from longrope.search.protocol import CandidateLoss, Objective

ROPE = Rope.of(load("tiny")[0].config)
LENGTH = 300
CANDIDATES = [scheme("yarn", ROPE, 2048), Scaling(np.linspace(1, 5, ROPE.dim // 2).tolist(), start_tokens=4)]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def here(one_thread: None) -> Iterator[EvaluationBackend]:
    with open_backend("tiny", dtype="float32") as there:
        yield there


def answers(objective: Objective, *, gradient: bool) -> list[list[CandidateLoss]]:
    """By batch, whichever was ready first."""
    batches = [[(one, item)] for one in CANDIDATES for item in range(2)]
    batches += [] if gradient else [[(CANDIDATES[0], 1), (CANDIDATES[1], 0)]]
    found = dict(objective.evaluate(batches, gradient=gradient))
    return [found[i] for i in range(len(batches))]


def tokens_of(there: EvaluationBackend) -> np.ndarray:
    return np.random.default_rng(0).integers(0, len(there.tokenizer) - 1, (2, LENGTH))


def test_here_it_is_the_model_itself(here: EvaluationBackend) -> None:
    model, tokenizer = load("tiny", dtype="float32")
    assert here.rope == Rope.of(model) == ROPE
    assert here.dtype == "torch.float32"
    assert here.tokenizer.get_vocab() == tokenizer.get_vocab()


@pytest.mark.slow
def test_two_workers_give_the_same_answers(here: EvaluationBackend) -> None:
    """Also on other items, and with gradients; float32 sums depend a little on the number of threads."""
    tokens = tokens_of(here)
    with open_backend("tiny", dtype="float32", workers="2") as there:
        assert (there.rope, there.tokenizer.get_vocab()) == (here.rope, here.tokenizer.get_vocab())
        for items in (perplexity_texts(tokens), perplexity_texts(tokens[::-1, :280], tail=20)):
            ours, theirs = here.make_objective(items), there.make_objective(items)
            assert list(ours.tokens) == list(theirs.tokens) == [len(item.tokens) for item in items]
            for gradient in (False, True):
                for one, other in zip(
                    answers(ours, gradient=gradient), answers(theirs, gradient=gradient), strict=True
                ):
                    assert [a.loss for a in one] == pytest.approx([a.loss for a in other], abs=1e-3)
                    if gradient:
                        np.testing.assert_allclose(one[0].gradient, other[0].gradient, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("workers", ["0", "-1", "", "two", "1.5", "²", "rays", "local"])
def test_workers_that_are_none_are_refused(workers: str) -> None:
    with (
        pytest.raises(
            LongRopeError, match=f"workers = '{workers}': not known. Use a number of processes, ray, or ray://HOST"
        ),
        open_backend("tiny", workers=workers),
    ):
        pass


def test_ray_without_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(LongRopeError, match=r"workers = 'ray': Ray is not installed. Run pip install"),
        open_backend("tiny", workers="ray"),
    ):
        pass


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_model_that_is_not_there_is_refused_at_once(tmp_path: Path, workers: str) -> None:
    with (
        pytest.raises(LongRopeError, match=r"model = .*nowhere.*no such folder"),
        open_backend(str(tmp_path / "nowhere"), workers=workers),
    ):
        pass


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_unknown_dtype_is_refused_at_once(workers: str) -> None:
    with (
        pytest.raises(LongRopeError, match="dtype = 'float8' is unknown; choose one of float32"),
        open_backend("tiny", dtype="float8", workers=workers),
    ):
        pass


def test_workers_tell_the_dtype_as_one_process_does() -> None:
    """Else a run begun on one of them could not be resumed on the other; no process is started here."""
    with open_backend("tiny") as here, open_backend("tiny", workers="2") as there:
        assert there.dtype == here.dtype


@pytest.mark.slow
def test_a_model_that_factors_do_not_reach_is_refused_in_a_worker(tmp_path: Path) -> None:
    complex_numbers = {"head_dim": 16, "num_local_experts": 2, "intermediate_size_mlp": 96, "num_hidden_layers": 4}
    families.build("llama4_text", **complex_numbers).save_pretrained(tmp_path)
    families.tokenizer().save_pretrained(tmp_path)
    items = perplexity_texts(families.tokens(1, 100).numpy())
    with (
        open_backend(str(tmp_path), workers="2") as there,
        pytest.raises(LongRopeError, match="complex numbers"),
    ):
        list(there.make_objective(items).evaluate([[(Scaling([2.0] * 8), 0)]], gradient=False))
