"""The best weights and factors of a run that was interrupted, and the room that a run needs on the disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import running
import torch
from safetensors.torch import load_file

from longrope.cost.model_shape import ModelShape
from longrope.errors import LongRopeError
from longrope.models.load import load
from longrope.stages.begin_run import begin_run
from longrope.stages.best_so_far import load_best_so_far
from longrope.stages.pipeline import extend
from longrope.stages.plan import Plan
from longrope.stages.plan_tables import Data, FinalEvaluation, Finetune, Search, Stage
from longrope.stages.requirements import check_disk
from longrope.stages.run_folder import StagedRun

FULL = Finetune(steps=4, batch=1, rate=1e-2, save_every=1)
LORA = FULL.model_copy(update={"lora": 2, "merge": False})
NAME = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return running.save(tmp_path_factory.mktemp("models") / "llama", torch.bfloat16)


@pytest.fixture
def interrupted(model: Path, tmp_path: Path) -> Callable[..., StagedRun]:
    """Begins a run, which is interrupted at a report of a step with that beginning."""

    def make(stage: Stage, step: str, at: int) -> StagedRun:
        def on_progress(name: str, done: int, total: int, note: str) -> None:
            if name.startswith(step) and done >= at:
                raise KeyboardInterrupt

        texts = running.text_folder(tmp_path / "texts")
        plan = Plan(stages=(stage,), data=Data(source=str(texts)), evaluation=FinalEvaluation(lengths=()))
        run = StagedRun(tmp_path / "run", str(model), plan, on_progress=on_progress)
        begin_run(run, resume=False)
        with pytest.raises(KeyboardInterrupt):
            extend(run)
        return run

    return make


def original(model: Path) -> torch.Tensor:
    return load(str(model))[0].get_parameter(f"{NAME}.weight")


def test_the_weights_of_the_last_checkpoint(interrupted: Callable[..., StagedRun]) -> None:
    run = interrupted(Stage(length=128, factors="yarn", finetune=FULL), "stage 1: fine-tune", 3)
    best = load_best_so_far(run)
    assert best is not None
    last = sorted((run.stage_folder(1) / "training").glob("checkpoint-*/complete"))[-1].parent
    trained = load_file(last / "model.safetensors")[f"{NAME}.weight"]
    assert best[0].dtype == torch.bfloat16  # the original checkpoint's
    assert best[0].get_parameter(f"{NAME}.weight").equal(trained.bfloat16())
    assert best[2].long == run.long_scaling(1)
    assert best[2].short.is_identity


def test_the_adapter_of_the_last_checkpoint_is_merged(interrupted: Callable[..., StagedRun], model: Path) -> None:
    run = interrupted(Stage(length=128, factors="yarn", finetune=LORA), "stage 1: fine-tune", 3)
    best = load_best_so_far(run)
    assert best is not None
    last = sorted((run.stage_folder(1) / "training").glob("checkpoint-*/complete"))[-1].parent
    tensors = load_file(last / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.{NAME}.lora_{matrix}.weight"].double() for matrix in "AB")
    assert b.abs().max() > 0
    merged = best[0].get_parameter(f"{NAME}.weight").double()
    expected = original(model).double() + 2 * b @ a  # alpha is twice the rank
    assert torch.allclose(merged, expected, atol=2e-2)
    assert not merged.equal(original(model).double())


def test_the_best_candidate_of_a_search(interrupted: Callable[..., StagedRun], model: Path) -> None:
    search = Search(documents=1, population=4, needles=0)
    run = interrupted(Stage(length=128, search=search, finetune=FULL), "stage 1: search", 1)
    best = load_best_so_far(run)
    assert best is not None
    written = json.loads((run.stage_folder(1) / "search" / "best.json").read_text())
    assert list(best[2].long.factors) == written["factors"]
    assert best[0].get_parameter(f"{NAME}.weight").equal(original(model))


def test_nothing_before_the_first_candidate(model: Path, tmp_path: Path) -> None:
    texts = running.text_folder(tmp_path / "texts")
    run = StagedRun(tmp_path / "run", str(model), Plan(stages=(Stage(length=128),), data=Data(source=str(texts))))
    begin_run(run, resume=False)
    assert load_best_so_far(run) is None


SHAPE = ModelShape.of(running.build().config)
MERGED = LORA.model_copy(update={"merge": True})


@pytest.mark.parametrize(
    ("tunings", "numbers"),
    [
        ((FULL,), 9 * SHAPE.parameters),  # three checkpoints with two moments
        ((FULL, FULL), 10 * SHAPE.parameters),  # the first stage leaves its weights alone
        ((MERGED,), 2 * SHAPE.parameters + 6 * SHAPE.trained(2)),  # two whole models beside two checkpoints
        ((LORA,), SHAPE.parameters + SHAPE.trained(2)),  # the export has whole weights
    ],
    ids=["all", "twice", "merged", "adapter"],
)
def test_a_disk_without_room_for_the_weights(
    tunings: tuple[Finetune, ...], numbers: int, small_disk: Callable[[int], Path]
) -> None:
    plan = Plan(stages=tuple(Stage(length=128 * (i + 1), finetune=tuning) for i, tuning in enumerate(tunings)))
    enough, too_small = small_disk(round(4.4 * numbers)), small_disk(round(3.6 * numbers))
    check_disk(plan, SHAPE, enough / "run")
    check_disk(plan, SHAPE, enough / "run", dtype=torch.bfloat16)
    with pytest.raises(LongRopeError, match=r"output = '.*run': the run writes up to .* GiB are free\. Make room"):
        check_disk(plan, SHAPE, too_small / "deep" / "run")


def test_a_plan_without_room_is_refused_before_any_work(
    model: Path, tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    plan = Plan(stages=(Stage(length=128, finetune=FULL),), data=Data(source=str(running.text_folder(tmp_path / "t"))))
    disk = small_disk(8 * SHAPE.parameters)
    with pytest.raises(LongRopeError, match="the run writes up to"):
        begin_run(StagedRun(disk / "run", str(model), plan), resume=False)
