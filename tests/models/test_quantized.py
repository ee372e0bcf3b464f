"""Quantised checkpoints: patched, searched and evaluated as they are, and exported as a config beside their weights.

``make test-quantized`` runs the kinds whose packages are missing here.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import quantised
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import longrope as lr
from longrope.data.weighted_text import perplexity_texts
from longrope.errors import LongRopeError
from longrope.models.load import load_config
from longrope.models.patch import patch
from longrope.models.quantized import gradient_barrier, method_of
from longrope.objectives.model_loss import ModelObjective
from longrope.rope import Rope
from longrope.scaling import Scaling

pytestmark = pytest.mark.filterwarnings("ignore")  # each package has its own
LENGTH = 4 * families.L0
IDS = families.tokens(1, LENGTH)
EXACT = ("fp8", "mxfp4", "gptq", "awq", "compressed-tensors int4")  # packed here, so the weights are known
ACTIVATIONS = ("bitsandbytes int8", "bitsandbytes nf4", "compressed-tensors int8")  # rounded by the kernel as well


@dataclass(frozen=True)
class Checkpoint:
    kind: str
    folder: Path
    model: PreTrainedModel
    reference: PreTrainedModel


@pytest.fixture(scope="module", params=quantised.KINDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    for package in quantised.PACKAGES.get(request.param, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    folder = tmp_path_factory.mktemp("quantised") / "model"
    reference = quantised.save(request.param, folder)
    return Checkpoint(request.param, folder, lr.load(str(folder))[0], reference)


def relative(difference: Tensor, expected: Tensor) -> float:
    return float(difference.float().norm() / expected.float().norm())


def yarn(model: PreTrainedModel) -> Scaling:
    return lr.scheme("yarn", Rope.of(model), LENGTH)


def test_the_weights_are_those_of_the_float_model(checkpoint: Checkpoint) -> None:
    model, reference = checkpoint.model, checkpoint.reference
    expected, most = families.logits(reference, IDS), 0.02 if checkpoint.kind in EXACT else 0.5
    assert relative(families.logits(model, IDS) - expected, expected) < most
    with patch(model, yarn(model)), patch(reference, yarn(reference)):
        expected = families.logits(reference, IDS)
        assert relative(families.logits(model, IDS) - expected, expected) < most


def test_factors_come_out_again_bit_for_bit(checkpoint: Checkpoint) -> None:
    model = checkpoint.model
    before = families.logits(model, IDS)
    with patch(model, Scaling.identity(Rope.of(model))):
        assert torch.equal(families.logits(model, IDS), before)
    with patch(model, yarn(model)):
        assert relative(families.logits(model, IDS) - before, before) > 0.1
    assert torch.equal(families.logits(model, IDS), before)


def test_the_config_beside_the_untouched_weights_is_the_export(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model, folder = checkpoint.model, checkpoint.folder
    with pytest.raises(LongRopeError, match=r"quant_method = .*Write the config alone"):
        lr.export(str(folder), None, yarn(model), tmp_path / "whole")
    lr.export(str(folder), None, yarn(model), tmp_path / "made", to="config")
    for path in folder.glob("*.safetensors*"):
        shutil.copy(path, tmp_path / "made" / path.name)
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path / "made").eval()
    assert method_of(load_config(str(tmp_path / "made"))) == method_of(load_config(str(folder)))
    with patch(model, yarn(model)):
        expected = families.logits(model, IDS)
    most = 0.05 if checkpoint.kind in ACTIVATIONS else 1e-4
    assert relative(families.logits(reopened, IDS) - expected, expected) < most


def test_losses_need_no_pass_of_the_whole_model_before(checkpoint: Checkpoint) -> None:
    """Kernels that unpack weights in the first pass of the whole model (compressed-tensors) have done so."""
    for model in (lr.load(str(checkpoint.folder))[0], AutoModelForCausalLM.from_pretrained(checkpoint.folder).eval()):
        [losses] = lr.token_losses(model, IDS)
        logits = families.logits(model, IDS)[0, :-1].float()
        expected = nn.functional.cross_entropy(logits, IDS[0, 1:], reduction="none")
        assert relative(torch.from_numpy(losses) - expected, expected) < 0.02


def gradient(model: PreTrainedModel, factors: np.ndarray) -> np.ndarray:
    objective = ModelObjective(model, perplexity_texts(IDS.numpy()))
    [(_, [answer])] = objective.evaluate([[(Scaling(factors.tolist()), 0)]], gradient=True)
    return np.array(answer.gradient)


def test_gradients_are_those_of_the_float_model_or_refused(checkpoint: Checkpoint) -> None:
    factors = np.linspace(1.2, 3, Rope.of(checkpoint.model).dim // 2)
    if gradient_barrier(checkpoint.model) is None:
        expected, values = gradient(checkpoint.reference, factors), gradient(checkpoint.model, factors)
        cosine = values @ expected / np.linalg.norm(values) / np.linalg.norm(expected)
        assert cosine > (0.99 if checkpoint.kind in EXACT else 0.5)
    else:
        assert checkpoint.kind in ACTIVATIONS
        with pytest.raises(LongRopeError, match=r"let no gradient through on cpu.*\(cma, paper, simple\)"):
            gradient(checkpoint.model, factors)


TEXTS = [" ".join(f"t{3 + (7 * i + j * j) % 90}" for j in range(LENGTH + 1 + i)) for i in range(10)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for i, text in enumerate(TEXTS):
        (tmp_path / "texts" / f"{i}.txt").write_text(text)
    return tmp_path / "texts"


def options(**fields: Any) -> lr.SearchOptions:
    few = {"search_documents": 1, "held_out_documents": 1, "needles": 0.0, "dtype": "auto"}
    return lr.SearchOptions(budget="6k", **few, **fields)


def test_a_search_and_its_evaluation(checkpoint: Checkpoint, texts: Path) -> None:
    found = lr.search(str(checkpoint.folder), length=LENGTH, data=texts, options=options())
    barrier = gradient_barrier(checkpoint.model)
    assert list(found.extension.long.provenance["method"]) == ["Auto" if barrier is None else "Cma"]
    candidates = {"searched": found.extension}
    results = lr.evaluate(str(checkpoint.folder), candidates=candidates, lengths=[LENGTH], texts=IDS.tolist())
    [row] = results["perplexity"]["searched"]
    with patch(checkpoint.model, found.extension.long):
        logits = families.logits(checkpoint.model, IDS)[0, :-1].float()
    assert np.log(row.perplexity) == pytest.approx(float(nn.functional.cross_entropy(logits, IDS[0, 1:])), rel=0.01)


class Flat(torch.autograd.Function):
    """A kernel whose backward pass gives zeros, such as the 4-bit one of bitsandbytes on some CPUs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        return torch.zeros(*slopes.shape[:-1], 64), None


class Unfinished(Flat):
    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        raise RuntimeError("derivative for a kernel is not implemented")


KERNELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gives zeros": Flat.apply,
    "raises": Unfinished.apply,
    "rounds without gradients": torch.no_grad()(lambda x, weight: x.round(decimals=3) @ weight.t()),
}


class Packed(nn.Module):
    """A linear layer with a kernel of its own."""

    def __init__(self, weight: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel(x, self.weight)


def packed_model(kernel: Callable[[Tensor, Tensor], Tensor]) -> PreTrainedModel:
    model = families.build("llama")
    model.config.quantization_config = {"quant_method": "made-up"}
    layer = model.model.layers[1].mlp
    layer.up_proj = Packed(layer.up_proj.weight.data, kernel)
    return model


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_a_kernel_without_a_backward_pass_is_not_searched_by_gradients(
    kernel: Callable[[Tensor, Tensor], Tensor], texts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The gradient would be wrong, not absent: it still flows around the layer."""
    model = packed_model(kernel)
    with caplog.at_level(logging.WARNING, "longrope"):
        found = lr.search(model, families.tokenizer(), length=LENGTH, data=texts, options=options())
    assert "Note: the made-up weights of Packed let no gradient through on cpu, so the search uses" in caplog.text
    assert "the method cma." in caplog.text
    assert list(found.extension.long.provenance["method"]) == ["Cma"]
    message = r"method: the made-up weights of Packed .* Use a method without gradients \(cma, paper, simple\)"
    with pytest.raises(LongRopeError, match=message):
        lr.search(model, families.tokenizer(), length=LENGTH, data=texts, method="gradient", options=options())
    lr.search(model, families.tokenizer(), length=LENGTH, data=texts, method="cma", options=options())


def test_a_kernel_with_a_backward_pass_keeps_the_default_method(texts: Path) -> None:
    model = packed_model(lambda x, weight: x @ weight.t())
    assert gradient_barrier(model) is None
    found = lr.search(model, families.tokenizer(), length=LENGTH, data=texts, options=options())
    assert list(found.extension.long.provenance["method"]) == ["Auto"]
