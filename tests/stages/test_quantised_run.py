"""Plans for a model with quantised weights, loaded by a quantiser whose kernel has no backward pass."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import running
import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from longrope.errors import LongRopeError
from longrope.models.load import load, load_config
from longrope.stages.begin_run import begin_run
from longrope.stages.pipeline import extend
from longrope.stages.plan import Plan
from longrope.stages.plan_by_hours import measure_machine
from longrope.stages.plan_tables import Data, Distill, FinalEvaluation, Finetune, Recovery, Search, Stage
from longrope.stages.requirements import check_loaded_weights, check_model_fits
from longrope.stages.run_folder import StagedRun

METHOD = "made-up"
SEARCH = Search(documents=1, population=4, budget=1000, needles=0.0)
TRAIN = Finetune(steps=1, batch=2, rate=1e-3, dtype="float32")


class MadeUpConfig(QuantizationConfigMixin):
    def __init__(self, **_: Any) -> None:
        super().__init__(quant_method=METHOD)


class Rounded(nn.Linear):
    """A linear layer whose kernel computes no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x.round(decimals=3))


class MadeUpQuantizer(HfQuantizer):
    requires_calibration = True

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> None: ...

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> None:
        for module in model.modules():
            if type(module) is nn.Linear and module.in_features > module.out_features:  # of the MLP
                module.__class__ = Rounded

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


@pytest.fixture(scope="module", autouse=True)
def quantiser() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, METHOD, MadeUpConfig)
        patched.setitem(auto.AUTO_QUANTIZER_MAPPING, METHOD, MadeUpQuantizer)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and texts."""
    folder = tmp_path_factory.mktemp("quantised")
    running.text_folder(folder / "texts")
    config = running.save(folder / "model") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": METHOD}}))
    return folder


def run_of(base: Path, folder: Path, stage: Stage, **fields: Any) -> StagedRun:
    fields = {"data": Data(source=str(base / "texts")), "evaluation": FinalEvaluation(lengths=()), **fields}
    run = StagedRun(folder, str(base / "model"), Plan(stages=(stage,), export="none", **fields))
    begin_run(run, resume=False)
    return run


def test_searches_take_a_method_without_gradients(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The recovery too, and a resumed run with it."""
    run = run_of(base, tmp_path / "run", Stage(length=128, search=SEARCH), recovery=Recovery(search=SEARCH))
    with caplog.at_level(logging.WARNING, "longrope"):
        extension = extend(run)
    assert caplog.text.count("let no gradient through on cpu, so the search uses the method cma.") == 2
    for folder in (run.stage_folder(1), run.folder / "recovery"):
        journal = (folder / "search" / "search-0.jsonl").read_text().splitlines()
        settings = json.loads(journal[0])["settings"]
        assert (list(settings["method"]), settings["space"]["parametrization"]) == (["Cma"], "spline")
        assert not any("gradient" in json.loads(line) for line in journal[1:])
    for path in (run.folder / "extension.json", run.folder / "recovery" / "search" / "extension.json"):
        path.unlink()
    assert extend(run) == extension


def test_a_method_with_gradients_that_the_plan_names_is_refused(base: Path, tmp_path: Path) -> None:
    stage = Stage(length=128, search=SEARCH.model_copy(update={"method": "gradient"}))
    run = run_of(base, tmp_path / "run", stage)
    with pytest.raises(LongRopeError, match=r"let no gradient through .* Use a method without gradients \(cma"):
        extend(run)


ADAPTER = {"lora": 4, "merge": False}
NO_ADAPTER = r"^stages\[0\]\.finetune: transformers trains no adapter beside made-up weights"
REFUSED = {
    "all weights": (
        {},
        r"stages\[0\]\.finetune: the made-up weights are quantised, and only an adapter .*merge = false",
    ),
    "merged": ({"lora": 4}, r"only an adapter beside them can be trained\. Give lora = 8 and merge = false"),
    "a teacher": (
        {**ADAPTER, "short": 0.5, "distill": Distill()},
        r"finetune\.distill: the made-up weights are quantised, and cannot be copied as a teacher\. Name a teacher",
    ),
    "an adapter": (ADAPTER, NO_ADAPTER),
}


@pytest.fixture(scope="module")
def loaded(base: Path) -> PreTrainedModel:
    return load(base / "model")[0]


@pytest.mark.parametrize("name", REFUSED)
def test_trainings_that_quantised_weights_do_not_take(name: str, loaded: PreTrainedModel) -> None:
    options, message = REFUSED[name]
    with pytest.raises(LongRopeError, match=message):
        check_loaded_weights(loaded, TRAIN.model_copy(update=options), "stages[0].finetune")


def test_a_run_ends_before_such_a_training(base: Path, tmp_path: Path) -> None:
    stage = Stage(length=128, factors="yarn", finetune=TRAIN.model_copy(update=ADAPTER))
    run = run_of(base, tmp_path / "run", stage)
    with pytest.raises(LongRopeError, match=NO_ADAPTER):
        extend(run)
    assert not (run.stage_folder(1) / "model").exists()


def test_weights_that_surely_stay_quantised_are_refused_before_any_work(base: Path) -> None:
    config = load_config(str(base / "model"))
    config.quantization_config = BitsAndBytesConfig(load_in_4bit=True).to_dict()
    for options, refused in (({}, True), ({"lora": 4}, True), (ADAPTER, False)):
        plan = Plan(stages=(Stage(length=128, finetune=TRAIN.model_copy(update=options)),), export="none")
        if refused:
            with pytest.raises(LongRopeError, match="the bitsandbytes weights are quantised"):
                check_model_fits(plan, config, "cpu")
        else:
            check_model_fits(plan, config, "cpu")


@pytest.mark.parametrize(
    ("fields", "device", "weights"),
    [
        (None, "cpu", "plain"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "cpu", "adapted"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "cpu", "fixed"),  # no gradient after a plain pass
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "mps", "adapted"),
        ({"quant_method": "awq", "bits": 4}, "cpu", "fixed"),
    ],
)
def test_what_a_choice_by_hours_trains(fields: dict[str, Any] | None, device: str, weights: str) -> None:
    config = load_config("tiny")
    if fields is not None:
        config.quantization_config = fields
    assert measure_machine(config, "float32", device, speeds={}).weights == weights
