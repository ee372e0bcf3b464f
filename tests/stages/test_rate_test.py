"""The rate that training chooses itself: by steps that leave no trace, once for a stage."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import running
import torch
from transformers import TrainerState

from longrope.errors import LongRopeError
from longrope.stages import rate_test
from longrope.stages.begin_run import _check_requirements
from longrope.stages.finetune import finetune
from longrope.stages.plan import Plan, parse_plan
from longrope.stages.plan_tables import Data, Finetune, Stage
from longrope.stages.run_folder import StagedRun

AUTO = Finetune(steps=4, batch=2, rate="auto", dtype="float32", save_every=4)


def train(folder: Path, settings: Finetune = AUTO, **fields: object) -> dict[str, torch.Tensor]:
    windows = running.windows(settings.batch * settings.step_count(running.LENGTH))
    finetune(running.build(**fields), running.FACTORS, windows, settings, folder=folder / "training")
    return running.weights(folder / "training" / "model")


def test_the_rate_with_the_lowest_loss_trains_as_if_it_were_given(tmp_path: Path) -> None:
    found = train(tmp_path / "auto")
    record = json.loads((tmp_path / "auto" / "training" / "rate.json").read_text())
    losses = {float(rate): loss for rate, loss in record["losses"].items()}
    assert losses.keys() <= set(rate_test.RATES)
    assert record["rate"] == min(losses, key=losses.__getitem__)
    assert min(losses.values()) < record["loss_before"] - 0.01
    assert losses[1e-5] == pytest.approx(record["loss_before"], abs=0.05)  # so small steps change little
    given = train(tmp_path / "given", AUTO.model_copy(update={"rate": record["rate"]}))
    assert all(torch.equal(found[name], given[name]) for name in given)


def test_a_resumed_training_takes_the_rate_that_was_found(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "rate.json").write_text('{"rate": 2e-4}')
    train(tmp_path)
    state = TrainerState.load_from_json(str(tmp_path / "training" / "checkpoint-4" / "trainer_state.json"))
    assert max(row["learning_rate"] for row in state.log_history if "learning_rate" in row) == pytest.approx(2e-4)


def test_a_launch_takes_the_rate_that_one_process_has_found(tmp_path: Path) -> None:
    plan = Plan(stages=(Stage(length=512, factors="pi", finetune=AUTO),), data=Data(source="."))
    run = StagedRun(tmp_path, "tiny", plan, launch=(sys.executable,))
    with pytest.raises(LongRopeError, match="the test of rates runs in one process"):
        _check_requirements(run)
    (tmp_path / "stage-1" / "training").mkdir(parents=True)
    (tmp_path / "stage-1" / "training" / "rate.json").write_text('{"rate": 2e-4}')
    _check_requirements(run)


def test_with_dropout_a_training_stopped_after_the_test_and_resumed_equals_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RATES", (1e-3,)), ("STEPS", 1), ("JUDGED", 1)):
        monkeypatch.setattr(rate_test, name, value)
    settings = AUTO.model_copy(update={"steps": 2})
    whole = train(tmp_path / "whole", settings, attention_dropout=0.3)
    (tmp_path / "stopped" / "training").mkdir(parents=True)
    record = (tmp_path / "whole" / "training" / "rate.json").read_text()
    (tmp_path / "stopped" / "training" / "rate.json").write_text(record)
    resumed = train(tmp_path / "stopped", settings, attention_dropout=0.3)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_training_that_diverges_at_every_rate_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_test, "RATES", (30.0, 300.0))
    with pytest.raises(LongRopeError, match=r'rate = "auto": training diverges at once\. .*after 6 steps at 30 it is'):
        train(tmp_path)
    assert not (tmp_path / "training" / "rate.json").exists()


@pytest.mark.parametrize(("device", "fused"), [("cuda", True), ("cpu", False)])
def test_its_optimizer_updates_in_place(device: str, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all parameters at once, which takes a copy of all of them on CUDA."""
    options: dict[str, object] = {}
    monkeypatch.setattr(torch.optim, "AdamW", lambda _, **given: options.update(given))
    arguments = SimpleNamespace(adam_beta2=0.95, device=torch.device(device))
    rate_test._take_steps(SimpleNamespace(args=arguments), [], [], 1, 1e-4)
    assert (options["foreach"], options["fused"]) == (False, fused)


@pytest.mark.parametrize("value", ["0", "-1e-5", '"fast"', "true"])
def test_a_rate_that_is_none_is_refused(value: str) -> None:
    text = f'version = 1\n[[stages]]\nlength = "2k"\n[stages.finetune]\nsteps = 3\nrate = {value}\n'
    with pytest.raises(LongRopeError, match=r"stages\[0\]\.finetune\.rate = .*: choose auto, or a number above 0"):
        parse_plan(text)
