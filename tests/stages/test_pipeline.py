"""A plan from its first search to its results, on a tiny random model."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running
import tomli_w
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from longrope.errors import LongRopeError
from longrope.evaluation.perplexity import perplexity
from longrope.longcontext.sparse_attention import sparse_masks
from longrope.longcontext.token_losses import token_losses
from longrope.models.load import load
from longrope.models.patch import patch
from longrope.scaling import Extension, Scaling
from longrope.schemes import attention_factor, scheme
from longrope.stages import average_test, pipeline
from longrope.stages.begin_run import begin_run
from longrope.stages.pipeline import extend, finetune_stage
from longrope.stages.plan import Plan, parse_plan
from longrope.stages.plan_tables import Data, Distill, FinalEvaluation, Finetune, Recovery, Search, Stage
from longrope.stages.run_folder import StagedRun, open_run

SEARCH = Search(documents=1, population=4)
TRAIN = Finetune(steps=3, batch=2, rate=1e-2, save_every=1)
STEP = TRAIN.model_copy(update={"steps": 1})
TWO = (Stage(length=128, search=SEARCH, finetune=TRAIN), Stage(length=256, search=SEARCH, finetune=TRAIN))
Begun = Callable[..., StagedRun]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return running.save(tmp_path_factory.mktemp("models") / "llama", torch.bfloat16)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return running.text_folder(tmp_path_factory.mktemp("texts") / "texts")


@pytest.fixture(scope="module")
def begun(model: Path, texts: Path) -> Begun:
    """Begins a run of some stages."""

    def make(folder: Path, *stages: Stage, **fields: Any) -> StagedRun:
        given = {"recovery": Recovery(search=SEARCH), "evaluation": FinalEvaluation(documents=2), **fields}
        run = StagedRun(
            folder, str(model), Plan(stages=stages or TWO, data=Data(source=str(texts), repeats=3), **given)
        )
        begin_run(run, resume=False)
        return run

    return make


@pytest.fixture(scope="module")
def moments() -> list[tuple[str, int]]:
    """Every report of progress of the finished run."""
    return []


@pytest.fixture(scope="module")
def finished(
    begun: Begun, moments: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[StagedRun, Extension]:
    """A whole run; not to be changed."""
    run = begun(tmp_path_factory.mktemp("finished") / "run")
    return run, extend(replace(run, on_progress=lambda part, done, *_: moments.append((part, done))))


QUICK: dict[str, Any] = {"recovery": None, "evaluation": FinalEvaluation(lengths=())}


class Died(Exception):  # noqa: N818
    pass


def journal(folder: Path, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    head, *lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return head, lines


def test_factors_multiply(finished: tuple[StagedRun, Extension]) -> None:
    run, extension = finished
    first, second = run.long_scaling(1), run.long_scaling(2)
    assert (first.length, second.length) == (128, 256)
    steps = np.array(second.factors) / np.array(first.factors)
    assert (np.array(first.factors) >= 1 - 1e-9).all()
    assert (steps >= 1 - 1e-9).all()
    assert steps.max() > 1.5  # and were found anew
    assert extension.long == second
    assert extension.length == 256
    for one, length in ((first, 128), (second, 256)):
        assert one.attention_factor == attention_factor("su", running.ROPE, length)


def test_the_second_search_is_on_the_fine_tuned_weights(finished: tuple[StagedRun, Extension]) -> None:
    """Its journal has the losses of the first stage's weights with what it asked about, and of no others."""
    run, _ = finished
    items = run.data.samples(SEARCH, [256])["search"]
    head, lines = journal(run.stage_folder(2) / "search", "search-0.jsonl")
    assert head["settings"]["space"]["before"]["factors"] == list(run.long_scaling(1).factors)
    asked = lines[0]
    scaling = Scaling(asked["factors"], attention_factor=asked["attention_factor"])
    assert (np.array(asked["factors"]) / np.array(run.long_scaling(1).factors) >= 1 - 1e-9).all()
    losses = []
    for weights in (run.stage_folder(1) / "model", run.model):
        loaded, _ = load(str(weights))
        with patch(loaded, scaling):
            found = token_losses(loaded, items[asked["item"]].tokens[None])[0]
        losses.append(found.astype(np.float64) @ items[asked["item"]].weights)
    assert asked["loss"] == pytest.approx(losses[0], rel=1e-5)
    assert abs(asked["loss"] - losses[1]) > 1e-4


def test_closed_forms_of_the_second_stage_go_on_from_the_first(finished: tuple[StagedRun, Extension]) -> None:
    run, _ = finished
    first, attention = run.long_scaling(1), attention_factor("su", running.ROPE, 256)
    yarn = scheme("yarn", first.rope_after(running.ROPE), 256)
    wanted = np.array(yarn.factors) * np.array(first.factors)
    _, lines = journal(run.stage_folder(2) / "search", "search-0.jsonl")
    assert any(np.allclose(line["factors"], wanted) for line in lines if "factors" in line)
    assert {line["attention_factor"] for line in lines if "factors" in line} == {attention}


def test_every_stage_starts_from_the_weights_of_the_one_before(finished: tuple[StagedRun, Extension]) -> None:
    run, _ = finished
    original, first, second = (running.weights(Path(run.weights(number))) for number in (1, 2, 3))
    distance = [
        sum((one[name].float() - other[name].float()).norm().item() for name in one)
        for one, other in ((original, first), (first, second), (original, second))
    ]
    assert min(distance) > 0
    assert distance[2] > max(distance[:2])


def form(weights: dict[str, torch.Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in weights.items()}


def test_weights_keep_the_checkpoints_own_form(finished: tuple[StagedRun, Extension]) -> None:
    """dtype, names, config and tokenizer; and the rope is the plain one."""
    run, _ = finished
    for number in (1, 2):
        folder = run.stage_folder(number) / "model"
        one, other = running.weights(Path(run.model)), running.weights(folder)
        assert form(one) == form(other)
        configs = [json.loads((path / "config.json").read_text()) for path in (Path(run.model), folder)]
        assert configs[0] == configs[1]
        assert (folder / "tokenizer.json").read_bytes() == (Path(run.model) / "tokenizer.json").read_bytes()
        _, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values())


def test_what_a_stage_leaves(finished: tuple[StagedRun, Extension]) -> None:
    run, _ = finished
    for number in (1, 2):
        names = {path.name for path in run.stage_folder(number).iterdir()}
        assert names == {"extension.json", "model", "search", "training", "training.json"}
        assert not list((run.stage_folder(number) / "training").iterdir())
        record = json.loads((run.stage_folder(number) / "training.json").read_text())
        assert record["needles"] == run.plan.data.needles
        assert (record["steps"], record["tokens"]) == (3, 3 * 2 * 64 * 2**number)
        assert math.isfinite(record["loss"])
        modes = {path.stat().st_mode for path in (run.stage_folder(number) / "model").iterdir()}
        assert len(modes) == 1  # safetensors 0.8 writes for the owner alone
    kept = [path.suffix for path in run.folder.rglob("*") if path.is_file()]
    assert not {".pt", ".pth", ".bin", ".pkl"} & set(kept)  # nothing is pickled
    assert not list(run.folder.rglob("*.tmp"))


def test_short_factors(finished: tuple[StagedRun, Extension]) -> None:
    run, extension = finished
    short, long = np.array(extension.short.factors), np.array(extension.long.factors)
    assert (short >= 1 - 1e-9).all()
    assert (short <= max(2, *long) + 1e-9).all()
    assert extension.short.length == running.L0
    assert extension.short.attention_factor == extension.long.attention_factor
    head, _ = journal(run.folder / "recovery" / "search", "search-0.jsonl")
    space = head["settings"]["space"]
    assert (space["length"], space["before"]) == (2 * running.L0, None)
    assert space["ceiling"] * 2 == pytest.approx(max(2, *long))
    _, lines = journal(run.folder / "recovery" / "search", "held-out.jsonl")
    judged = np.unique([line["factors"] for line in lines], axis=0)
    for part in (0.0, 0.5, 1.0):
        assert np.isclose(judged, long**part).all(axis=1).any()
    best = min(
        (sum(line["loss"] for line in lines if line["factors"] == one.tolist()), tuple(one.tolist())) for one in judged
    )
    assert extension.short.factors == pytest.approx(best[1])


def rows(run: StagedRun, extension: Extension) -> dict[str, tuple[str, Scaling | Extension | None]]:
    trained = [str(run.stage_folder(number) / "model") for number in (1, 2)]
    return {
        "original": (run.model, None),
        "yarn": (run.model, scheme("yarn", running.ROPE, 256)),
        "heuristic": (run.model, scheme("heuristic", running.ROPE, 256)),
        "128 searched": (run.model, run.long_scaling(1)),
        "128 fine-tuned": (trained[0], run.long_scaling(1)),
        "256 searched": (trained[0], run.long_scaling(2)),
        "256 fine-tuned": (trained[1], run.long_scaling(2)),
        "extended": (trained[1], extension),
    }


def test_results_are_what_compare_gives(finished: tuple[StagedRun, Extension]) -> None:
    run, extension = finished
    record, wanted = json.loads((run.folder / "results.json").read_text()), rows(run, extension)
    assert list(record["perplexity"]) == list(wanted)
    assert record["lengths"] == [64, 128, 256]
    at = {}
    for name, (weights, factors) in wanted.items():
        loaded, _ = load(weights)
        cells = perplexity(loaded, run.data.test_documents().tokens, [64, 128, 256], scaling=factors)
        found = [{key: value for key, value in cell.items() if key != "corpus"} for cell in record["perplexity"][name]]
        for ours, cell in zip(found, cells, strict=True):
            expected = cell.model_dump(exclude={"corpus"})
            assert ours.pop("losses") == pytest.approx(expected.pop("losses"), rel=1e-5)
            assert ours == pytest.approx(expected, rel=1e-4)
        at[name] = cells[0].perplexity
    lost = {name: 100 * (value / at["original"] - 1) for name, value in at.items() if name != "original"}
    assert record["short_context"] == pytest.approx(lost)
    assert len({row[2]["perplexity"] for row in record["perplexity"].values()} - {None}) == 7  # the last two agree


def test_a_finished_run_is_left_as_it_is(finished: tuple[StagedRun, Extension]) -> None:
    run, extension = finished
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in run.folder.rglob("*")}
    begin_run(run, resume=True)
    assert extend(run) == extension
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in run.folder.rglob("*")} == before


def test_runs_of_others_are_refused(finished: tuple[StagedRun, Extension], model: Path, tmp_path: Path) -> None:
    run, _ = finished
    other = run.plan.model_copy(update={"attention": "none"})
    for given, resume, said in (
        (run, False, "exists; continue it with --resume or choose another output with -o"),
        (replace(run, plan=other), True, "is the run of another plan, .*/plan.toml; resume with that one"),
        (replace(run, plan=other), False, "is the run of another plan"),
        (replace(run, model="tiny"), True, f"is a run of model {model}; choose another output"),
    ):
        with pytest.raises(LongRopeError, match=said):
            begin_run(given, resume=resume)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").touch()
    for resume in (False, True):
        with pytest.raises(LongRopeError, match="taken exists and holds no run; choose another output with -o"):
            begin_run(replace(run, folder=tmp_path / "taken"), resume=resume)
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["notes.txt"]


def copied(run: StagedRun, folder: Path, *missing: str) -> StagedRun:
    """A copy of a run on a copy of its documents, without some of its files."""
    texts = Path(shutil.copytree(run.plan.data.source or "", folder / "texts"))
    plan = run.plan.model_copy(update={"data": run.plan.data.model_copy(update={"source": str(texts)})})
    begin_run(replace(run, folder=folder / "run", plan=plan), resume=False)
    for path in run.folder.iterdir():
        if path.name not in ("run.json", "plan.toml", "tokens", *missing):
            (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / "run" / path.name)
    return open_run(folder / "run")


@pytest.mark.parametrize("change", ["added", "edited", "removed", "renamed"])
def test_other_documents_are_not_mixed_in(change: str, finished: tuple[StagedRun, Extension], tmp_path: Path) -> None:
    """Once all is measured, no document is read."""
    run = copied(finished[0], tmp_path, "results.json")
    texts = Path(run.plan.data.source or "")
    begin_run(run, resume=True)
    first = texts / "00.txt"
    {
        "added": lambda: (texts / "new.txt").write_text("t1 t2 t3"),
        "edited": lambda: first.write_text(first.read_text() + " t3"),
        "removed": first.unlink,
        "renamed": lambda: first.rename(texts / "zz.txt"),
    }[change]()
    with pytest.raises(LongRopeError, match=r"data = '.*texts': the documents are not those that .*run was begun with"):
        begin_run(open_run(run.folder), resume=True)
    record = json.loads((run.folder / "run.json").read_text())
    (run.folder / "run.json").write_text(json.dumps({**record, "documents": None}))  # as earlier versions did
    begin_run(open_run(run.folder), resume=True)
    (run.folder / "run.json").write_text(json.dumps(record))
    (run.folder / "results.json").write_text("{}")
    begin_run(open_run(run.folder), resume=True)


def test_other_weights_of_the_model_are_not_mixed_in(
    finished: tuple[StagedRun, Extension], model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    run = replace(finished[0], folder=tmp_path / "run", model=str(folder))
    begin_run(run, resume=False)
    begin_run(run, resume=True)
    (weights,) = folder.glob("*.safetensors")
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    with pytest.raises(LongRopeError, match=r"run was begun with other weights of .*model\. Restore them"):
        begin_run(run, resume=True)


def test_other_factors_in_the_plans_file_are_not_mixed_in(
    finished: tuple[StagedRun, Extension], tmp_path: Path
) -> None:
    file = tmp_path / "factors.json"
    file.write_text(running.FACTORS.to_json())
    plan = finished[0].plan.model_copy(update={"stages": (Stage(length=running.LENGTH, factors=str(file)),)})
    run = replace(finished[0], folder=tmp_path / "run", plan=plan)
    begin_run(run, resume=False)
    begin_run(run, resume=True)
    file.write_text(replace(running.FACTORS, attention_factor=1.5).to_json())
    with pytest.raises(LongRopeError, match=r"other factors in stages\.factors = '.*factors\.json'\. Restore the file"):
        begin_run(run, resume=True)


def test_what_a_resumed_training_needs_is_checked(finished: tuple[StagedRun, Extension], tmp_path: Path) -> None:
    """Not once all stages are trained."""
    run = replace(copied(finished[0], tmp_path, "results.json"), device="cuda:1", report_to="nobody")
    begin_run(run, resume=True)
    shutil.rmtree(run.stage_folder(2) / "model")
    with pytest.raises(LongRopeError, match=r"device = 'cuda:1': fine-tuning takes the first device"):
        begin_run(run, resume=True)
    with pytest.raises(LongRopeError, match="report_to = 'nobody': the service is unknown"):
        begin_run(replace(run, device="cpu"), resume=True)


DAMAGED = {
    "missing": None,
    "no JSON": "{",
    "a list": "[]",
    "no plan": '{"version": 1, "model": "tiny"}',
}


@pytest.mark.parametrize("name", DAMAGED)
def test_folders_that_hold_no_run(name: str, tmp_path: Path) -> None:
    text = DAMAGED[name]
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(LongRopeError, match=r"holds no run of longrope extend: its run.json is missing or damaged"):
        open_run(tmp_path)


def test_another_dtype_is_not_mixed_in(finished: tuple[StagedRun, Extension]) -> None:
    run, _ = finished
    with pytest.raises(LongRopeError, match=f"was begun with dtype {run.dtype}, now bfloat16"):
        begin_run(replace(run, dtype="bfloat16"), resume=True)
    assert open_run(run.folder).dtype == run.dtype


def test_a_run_of_a_newer_version(finished: tuple[StagedRun, Extension], tmp_path: Path) -> None:
    record = json.loads((finished[0].folder / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(record | {"version": 2}))
    with pytest.raises(LongRopeError, match=r"run.json: version = 2, but this longrope reads 1: upgrade longrope"):
        open_run(tmp_path)


def test_a_run_can_be_reopened(finished: tuple[StagedRun, Extension]) -> None:
    run, _ = finished
    again = open_run(run.folder)
    assert (again.model, again.plan) == (run.model, run.plan)
    assert (run.folder / "plan.toml").read_text() == run.plan.to_toml()


def test_a_stage_without_fine_tuning(begun: Begun, tmp_path: Path) -> None:
    """The next one goes on from the weights and the factors that were fine-tuned last."""
    stages = (
        Stage(length=128, factors="pi", finetune=STEP),
        Stage(length=192, factors="ntk"),
        Stage(length=256, search=SEARCH),
    )
    run = begun(tmp_path / "run", *stages, **QUICK)
    assert [run.last_finetuned_before(number) for number in (1, 2, 3, 4)] == [0, 1, 1, 1]
    assert run.weights(1) == run.model
    assert run.weights(2) == run.weights(3) == run.weights(4) == str(run.stage_folder(1) / "model")
    extension = extend(run)
    assert not (run.stage_folder(2) / "model").exists()
    assert not (run.stage_folder(3) / "model").exists()
    head, _ = journal(run.stage_folder(3) / "search", "search-0.jsonl")
    assert head["settings"]["space"]["before"]["factors"] == [2.0] * 8
    assert min(extension.long.factors) >= 2 - 1e-9


def test_factors_of_a_scheme(begun: Begun, tmp_path: Path) -> None:
    stages = (Stage(length=128, factors="yarn", finetune=STEP), Stage(length=256, factors="linear"))
    run = begun(tmp_path / "run", *stages, attention="yarn", **QUICK)
    extension, yarn = extend(run), scheme("yarn", running.ROPE, 128)
    assert run.long_scaling(1).factors == yarn.factors
    assert np.allclose(extension.long.factors, 2 * np.array(yarn.factors))  # PI from 128 to 256 is twice
    assert extension.long.attention_factor == 0.1 * math.log(4) + 1
    assert not (run.stage_folder(1) / "search").exists()


def test_factors_of_a_file(begun: Begun, tmp_path: Path) -> None:
    """They are taken as they are, whole, whatever was fine-tuned before and whatever length they were made for."""
    given = Scaling([1.0, 1.5, 1.25, 2, 3, 3, 4, 5], attention_factor=1.25, scheme="mine", length=128)
    other = Scaling([1.0, 1.5, 1.25, 2, 3, 3, 4, 6], attention_factor=1.5, scheme="mine", length=128)
    (tmp_path / "scaling.json").write_text(given.to_json())
    (tmp_path / "extension.json").write_text(Extension.of(running.ROPE, other).to_json())
    files = [str(tmp_path / f"{kind}.json") for kind in ("extension", "scaling")]
    first, last = (Stage(length=192 + 64 * i, factors=file) for i, file in enumerate(files))
    run = begun(tmp_path / "run", Stage(length=128, factors="pi", finetune=STEP), first, last, **QUICK)
    extension = extend(run)
    assert (run.long_scaling(2).factors, run.attention_factor(2)) == (other.factors, 1.5)
    assert (extension.long.factors, extension.long.attention_factor) == (given.factors, 1.25)
    assert (run.long_scaling(2).length, extension.long.length, extension.length) == (192, 256, 256)
    assert run.attention_factor(3) == 1.25


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (Scaling([1.0, 2.0], length=256), "2 values for a rope of dim 16"),
        (
            Extension.of(replace(running.ROPE, base=5e5), Scaling([2.0] * 8, length=256)),
            r"stages\[0\].factors = '.*mine.json': extension.rope = Rope\(.*500000.*the model has Rope",
        ),
    ],
)
def test_factors_of_another_model(begun: Begun, tmp_path: Path, written: Scaling | Extension, said: str) -> None:
    (tmp_path / "mine.json").write_text(written.to_json())
    with pytest.raises(LongRopeError, match=said):
        begun(tmp_path / "run", Stage(length=256, factors=str(tmp_path / "mine.json"), finetune=TRAIN))
    assert not (tmp_path / "run" / "run.json").exists()


MIXED = STEP.model_copy(update={"short": 0.5})
SU_64, SU_128, SU_256 = (attention_factor("su", running.ROPE, length) for length in (64, 128, 256))
ATTENTION = {  # how the stages are trained, the policy, the factor of short sequences; whether it is searched
    "trained": ([STEP], "su", SU_128, False),
    "with mixed windows": ([MIXED], "su", SU_64, True),
    "with mixed windows in the end": ([STEP, MIXED], "su", SU_64, True),
    "with mixed windows in the beginning": ([MIXED, STEP], "su", SU_256, False),
    "without": ([STEP, STEP], "none", SU_64, False),
}


@pytest.mark.parametrize(("name", "export"), [*((name, "none") for name in ATTENTION), ("with mixed windows", "dual")])
def test_the_attention_factor_of_short_factors(name: str, export: str, begun: Begun, tmp_path: Path) -> None:
    """That of the training, or between it and the long factors' where they differ and a checkpoint can tell both."""
    hows, policy, trained, searched = ATTENTION[name]
    stages = [Stage(length=128 * (i + 1), factors="pi", finetune=how) for i, how in enumerate(hows)]
    run = begun(tmp_path / "run", *stages, attention=policy, evaluation=FinalEvaluation(lengths=()), export=export)
    assert run.short_attention_factor == trained
    extension = extend(run)
    head, lines = journal(run.folder / "recovery" / "search", "search-0.jsonl")
    space = head["settings"]["space"]
    if searched and export == "none":
        assert (space["attention_factor"], space["search_attention"]) == (SU_128, True)
        assert len({line["attention_factor"] for line in lines if "factors" in line}) > 1
        assert 1 <= extension.short.attention_factor <= 1 + 0.2 * math.log(2)
    else:
        assert (space["attention_factor"], space["search_attention"]) == (trained, False)
        assert extension.short.attention_factor == trained
    assert not (run.folder / "results.json").exists()


def test_mixed_windows_are_trained_with_both_sets(begun: Begun, tmp_path: Path) -> None:
    """The second step has short rows alone, the third a whole window."""
    how = Finetune(steps=3, batch=1, rate=1e-12, short=0.5, dtype="float32", save_every=3)
    for steps in (2, 3):
        stage = Stage(length=128, factors="pi", finetune=how.model_copy(update={"steps": steps}))
        run = begun(tmp_path / f"{steps}", stage, **QUICK)
        extend(run)
        item = {name: torch.from_numpy(array) for name, array in run.data.windows(stage)[steps - 1].items()}
        assert len(item["input_ids"]) == (2 if steps == 2 else 1)
        model, _ = load(run.model, dtype="float32")
        with (
            patch(model, run.long_scaling(1) if steps == 3 else Scaling.identity(running.ROPE)),
            torch.inference_mode(),
        ):
            wanted = model(**item).loss.item()
        assert json.loads((run.stage_folder(1) / "training.json").read_text())["loss"] == pytest.approx(
            wanted, rel=1e-5
        )


@pytest.mark.parametrize(
    ("lora", "dtype", "held"),
    [(2, "float32", torch.float32), (2, "bfloat16", torch.bfloat16), (0, "bfloat16", torch.float32)],
)
def test_what_weights_are_held_in(
    lora: int, dtype: str, held: torch.dtype, begun: Begun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LoRA's frozen ones in the checkpoint's dtype, unless float32 is asked for; trained ones in float32."""
    given: set[torch.dtype] = set()

    def finetune(model: PreTrainedModel, *_: Any, **__: Any) -> None:
        given.update(weight.dtype for weight in model.parameters())
        raise Died

    monkeypatch.setattr(pipeline, "finetune", finetune)
    how = Finetune(steps=1, batch=1, rate=1e-3, lora=lora, dtype=dtype)
    with pytest.raises(Died):
        extend(begun(tmp_path / "run", Stage(length=128, factors="pi", finetune=how), **QUICK))
    assert given == {held}


def test_a_ceiling_of_the_recovery(begun: Begun, tmp_path: Path) -> None:
    stage = Stage(length=1024, factors="pi")
    evaluation = FinalEvaluation(lengths=(64,), documents=1)
    run = begun(tmp_path / "run", stage, recovery=Recovery(ceiling=1.5, search=SEARCH), evaluation=evaluation)
    assert max(extend(run).short.factors) <= 1.5 + 1e-9
    for name in ("search-0.jsonl", "held-out.jsonl"):
        _, lines = journal(run.folder / "recovery" / "search", name)
        assert max(max(line["factors"]) for line in lines if "factors" in line) == pytest.approx(1.5)


def test_without_recovery_short_sequences_see_the_original_rope(begun: Begun, tmp_path: Path) -> None:
    extension = extend(begun(tmp_path / "run", Stage(length=128, factors="ntk"), **QUICK))
    assert extension.short.is_identity
    assert not (tmp_path / "run" / "recovery").exists()


def test_one_test_document_and_losses_that_are_not_finite(begun: Begun, tmp_path: Path) -> None:
    """The error of one document, and the loss of a broken model, are null; what is there is gone on with."""
    run = begun(
        tmp_path / "run", Stage(length=128, factors="ntk"), recovery=None, evaluation=FinalEvaluation(documents=1)
    )
    extend(run)
    path, journal = run.folder / "results.json", run.folder / "cells.jsonl"
    record = json.loads(path.read_text())
    assert record["perplexity"]["original"][0]["standard_error"] is None
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    lines[2]["value"]["lengths"] = dict.fromkeys(lines[2]["value"]["lengths"])  # of YaRN
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    path.unlink()
    extend(run)
    found = json.loads(path.read_text())
    assert found["perplexity"]["extended"] == record["perplexity"]["extended"]
    assert found["perplexity"]["yarn"][0]["perplexity"] is None
    assert found["short_context"].pop("yarn") is None
    assert set(found["short_context"]) == {"heuristic", "128 ntk", "extended"}
    assert "perplexity" in found["not_finite"]["yarn"]


def test_questions_that_share_a_text(begun: Begun, tmp_path: Path) -> None:
    """The plan's number of questions is that of the journal and of the results."""
    table = FinalEvaluation(documents=1, schemes=(), retrieval=("recall",), trials=4, questions=3)
    run = begun(tmp_path / "run", Stage(length=128, factors="ntk"), recovery=None, evaluation=table)
    extend(run)
    record = json.loads((run.folder / "results.json").read_text())
    assert {score["questions"] for scores in record["retrieval"].values() for score in scores} == {3}
    assert "retrieval recall 128 3 questions" in (run.folder / "cells.jsonl").read_text()
    assert {prompt.document for prompt in run.data.prompts()["recall", 128][:3]} != {None}


TOO_SMALL = {
    "population": (Search(documents=1, population=3), "population = 3: too small. Use at least 4"),
    "budget": (Search(documents=1, budget=100), "budget = 100: one step of this search takes"),
}


@pytest.mark.parametrize("name", TOO_SMALL)
@pytest.mark.parametrize("place", ["stage", "recovery"])
def test_searches_that_are_too_small_are_refused_before_any_work(
    name: str, place: str, begun: Begun, tmp_path: Path
) -> None:
    search, said = TOO_SMALL[name]
    fields = {"recovery": Recovery(search=search)} if place == "recovery" else QUICK
    last = Stage(length=256, search=search if place == "stage" else SEARCH)
    with pytest.raises(LongRopeError, match=said):
        begun(tmp_path / "run", TWO[0], last, **fields)
    assert not (tmp_path / "run" / "run.json").exists()


SPARSE = TRAIN.model_copy(update={"windows": "sparse", "window": 96, "short": 0.5, "dtype": "float32"})
FAR = Stage(length=256, factors="ramp", finetune=SPARSE)


def with_finetune(stage: Stage, **changes: Any) -> Stage:
    assert stage.finetune is not None
    return stage.model_copy(update={"finetune": stage.finetune.model_copy(update=changes)})


def test_sparse_windows_and_a_teacher(begun: Begun, tmp_path: Path) -> None:
    plain, taught = (
        begun(tmp_path / name, with_finetune(FAR, distill=distill), **QUICK)
        for name, distill in (("plain", None), ("taught", Distill(weight=0.9, hidden=4, skipped=0.5)))
    )
    assert "key_bias" in plain.data.windows(FAR)[0]
    for run in (plain, taught):
        assert extend(run).long.scheme == "ramp"
    one, other = (running.weights(run.stage_folder(1) / "model") for run in (plain, taught))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_the_teacher_of_a_later_stage_is_the_original_model(
    begun: Begun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers: list[str | None] = []
    real = pipeline.finetune

    def finetune(model: PreTrainedModel, scaling: Extension, windows: Any, settings: Finetune, **options: Any) -> Any:
        teachers.append(settings.distill.teacher if settings.distill else "none")
        if len(teachers) == 2:
            raise Died
        return real(model, scaling, windows, settings, **options)

    monkeypatch.setattr(pipeline, "finetune", finetune)
    stage = with_finetune(FAR, distill=Distill(), steps=1)
    run = begun(tmp_path / "run", stage.model_copy(update={"length": 128}), stage, **QUICK)
    with pytest.raises(Died):
        extend(run)
    assert teachers == [None, run.model]  # in the first stage it is the model itself


def test_averaged_weights_are_between_the_trained_and_the_original_ones(begun: Begun, tmp_path: Path) -> None:
    runs = [begun(tmp_path / f"{share}", with_finetune(FAR, average=share), **QUICK) for share in (0.0, 0.25)]
    for run in runs:
        extend(run)
    trained, averaged = (running.weights(run.stage_folder(1) / "model") for run in runs)
    original = running.weights(Path(runs[0].model))
    for name in trained:
        share = 0.0 if "q_proj" in name or "k_proj" in name else 0.25
        wanted = torch.lerp(trained[name].float(), original[name].float(), share).to(averaged[name].dtype)
        torch.testing.assert_close(averaged[name], wanted, rtol=0.01, atol=1e-3)
        assert averaged[name].dtype == trained[name].dtype == torch.bfloat16
    assert any(not torch.equal(trained[name], averaged[name]) for name in trained)


def test_a_teacher_with_another_vocabulary_is_refused_before_any_work(begun: Begun, tmp_path: Path) -> None:
    other = running.save(tmp_path / "other", vocab_size=200)
    stage = with_finetune(FAR, distill=Distill(teacher=str(other)))
    with pytest.raises(LongRopeError, match=r"distill\.teacher = .*its vocab_size is 200, the model's 128\. Take"):
        begun(tmp_path / "run", stage, **QUICK)
    assert not (tmp_path / "run").exists()


def test_hidden_states_of_other_layers_are_refused_before_any_work(begun: Begun, tmp_path: Path) -> None:
    teacher = str(running.save(tmp_path / "other", num_hidden_layers=2))
    run = begun(tmp_path / "fine", with_finetune(FAR, distill=Distill(teacher=teacher)), **QUICK)
    assert run.plan.stages[0] == with_finetune(FAR, distill=Distill(teacher=teacher))
    with pytest.raises(LongRopeError, match=r"its num_hidden_layers is 2, the model's 1\. .* leave hidden out\.$"):
        begun(tmp_path / "run", with_finetune(FAR, distill=Distill(teacher=teacher, hidden=16)), **QUICK)


def test_sparse_windows_that_the_documents_cannot_fill_are_noted(
    begun: Begun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", "longrope"):
        begun(tmp_path / "near", FAR, **QUICK)
        assert not caplog.records
        begun(tmp_path / "far", FAR.model_copy(update={"length": 2**20}), **QUICK)
    (note,) = caplog.records
    assert re.match(r"Note: sparse windows reach [\d,]+ of 1,048,576 tokens", note.getMessage())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"window": None}, r'windows = "sparse" needs window'),
        ({"short": 0.0, "distill": {}}, r"distill works on short sequences, but short = 0"),
        ({"distill": {"weight": 1.5}}, r"distill\.weight = 1\.5 must be 1 or less"),
        ({"distill": {"hidden": -1}}, r"distill\.hidden = -1 must be 0.0 or more"),
        (
            {"distill": {"weight": 0, "skipped": 0.5}},
            r"distill: skipped = 0\.5 needs a teacher, but weight = 0 and hidden = 0",
        ),
        ({"windows": "wide"}, r"windows = 'wide' must be 'jump' or 'sparse'"),
    ],
)
def test_finetuning_keys_that_do_not_fit(changes: dict[str, Any], said: str) -> None:
    table = {"steps": 3, "windows": "sparse", "window": "2k", "short": 0.5, **changes}
    table = {name: value for name, value in table.items() if value is not None}
    text = tomli_w.dumps({"version": 1, "stages": [{"length": "128k", "finetune": table}]})
    with pytest.raises(LongRopeError, match=said):
        parse_plan(text)


def test_a_model_that_is_long_enough(begun: Begun, tmp_path: Path) -> None:
    with pytest.raises(LongRopeError, match=r"stages\[0\].length = 64 is not above the model's original length 64"):
        begun(tmp_path / "run", Stage(length=64), Stage(length=128))
    assert not (tmp_path / "run" / "run.json").exists()


def test_lora_leaves_whole_weights(begun: Begun, tmp_path: Path) -> None:
    lora = TRAIN.model_copy(update={"lora": 4, "rate": 1e-1})
    run = begun(tmp_path / "run", Stage(length=128, factors="pi", finetune=lora), **QUICK)
    extend(run)
    before, after = running.weights(Path(run.model)), running.weights(run.stage_folder(1) / "model")
    assert form(before) == form(after)
    assert all(torch.equal(before[name], after[name]) != ("_proj" in name) for name in before)


def signature(run: StagedRun) -> dict[str, Any]:
    """All that a run leaves, without times."""
    found: dict[str, Any] = {}
    for path in sorted(run.folder.rglob("*")):
        name = str(path.relative_to(run.folder))
        if not path.is_file() or name.startswith("tokens/") or name in ("progress.log", "report.html"):
            continue
        if path.suffix == ".safetensors":
            found[name] = {key: tensor.tolist() for key, tensor in running.weights(path.parent).items()}
        elif path.suffix == ".jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
        elif path.suffix == ".json":
            record = json.loads(path.read_text())
            found[name] = {key: value for key, value in record.items() if key not in ("seconds", "provenance")}
        else:
            found[name] = path.read_bytes()
    return found


def test_stopped_at_every_word_and_resumed_equals_uninterrupted(
    finished: tuple[StagedRun, Extension], moments: list[tuple[str, int]], tmp_path: Path
) -> None:
    """An exception out of the first, middle and last report of each search, choice, fine-tuning and measurement."""
    whole, _ = finished
    parts = {part: list(dict.fromkeys(moment for moment in moments if moment[0] == part)) for part, _ in moments}
    assert len(parts) == 9
    left = [part[place] for part in parts.values() for place in sorted({0, len(part) // 2, len(part) - 1})]
    assert len(left) > 14
    cut = tmp_path / "cut"

    def die(part: str, done: int, *_: Any) -> None:
        if left and (part, done) == left[0]:
            left.pop(0)
            raise Died

    begin_run(replace(whole, folder=cut), resume=False)
    while left:
        with pytest.raises(Died):
            extend(replace(whole, folder=cut, on_progress=die))
    extend(replace(whole, folder=cut))
    assert signature(replace(whole, folder=cut)) == signature(whole)


def test_training_that_is_done_anew_starts_clean(finished: tuple[StagedRun, Extension], tmp_path: Path) -> None:
    """What a crash left of the weights' new folder is thrown away."""
    whole, _ = finished
    shutil.copytree(whole.folder, tmp_path / "run")
    run = replace(whole, folder=tmp_path / "run")
    shutil.rmtree(run.stage_folder(2) / "model")
    (run.stage_folder(2) / "model.new").mkdir()
    (run.stage_folder(2) / "model.new" / "model-00001-of-00002.safetensors").write_bytes(b"cut")
    (run.stage_folder(2) / "model.new" / "added_tokens.json").write_text("{}")
    (run.stage_folder(2) / "training" / "model").mkdir(parents=True)
    (run.stage_folder(2) / "training" / "model" / "model-00001-of-00002.safetensors").write_bytes(b"cut")
    finetune_stage(run, 2)
    names = {path.name for path in (run.stage_folder(2) / "model").iterdir()}
    assert names == {path.name for path in (whole.stage_folder(2) / "model").iterdir()}
    running.assert_equal(run.stage_folder(2) / "model", whole.stage_folder(2) / "model")


def command(whole: StagedRun, folder: Path, *more: str) -> list[str]:
    """The command line for the run of a plan in a folder."""
    plan = folder.parent / "plan.toml"
    plan.write_text(whole.plan.to_toml())
    return [sys.executable, "-m", "longrope", "extend", whole.model, str(plan), "-o", str(folder), "--json", *more]


@pytest.fixture
def uninterrupted(finished: tuple[StagedRun, Extension], tmp_path: Path) -> StagedRun:
    """The same run by the command line, which exports as well."""
    whole = replace(finished[0], folder=tmp_path / "uninterrupted")
    subprocess.run(command(finished[0], whole.folder), check=True, capture_output=True, env=ONE_THREAD)
    return whole


def lines_of(name: str, count: int) -> Callable[[Path], bool]:
    return lambda run: (run / name).exists() and (run / name).read_bytes().count(b"\n") >= count


def made(name: str) -> Callable[[Path], bool]:
    return lambda run: (run / name).exists()


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
MOMENTS = {  # at which a run is killed, in their order
    "documents": made("tokens"),
    "the plan": made("run.json"),
    "a search": lines_of("stage-1/search/search-0.jsonl", 4),
    "its judges": lines_of("stage-1/search/held-out.jsonl", 3),
    "first step": made("stage-1/training/checkpoint-1"),
    "last step": made("stage-1/training/checkpoint-3/complete"),
    "weights": made("stage-1/training/model/model.safetensors"),
    "weights in their own dtype": made("stage-1/model.new"),
    "a stage": made("stage-1/model"),
    "the second search": lines_of("stage-2/search/search-0.jsonl", 9),
    "the second stage's steps": made("stage-2/training/checkpoint-2/optimizer.pt"),
    "the second stage": made("stage-2/model"),
    "the recovery": lines_of("recovery/search/search-0.jsonl", 4),
    "the factors": made("extension.json"),
    "the results": made("results.json"),
}


@pytest.mark.slow
def test_killed_at_many_moments_and_resumed_equals_uninterrupted(
    finished: tuple[StagedRun, Extension], uninterrupted: StagedRun, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    for name, reached in MOMENTS.items():
        process = subprocess.Popen(
            command(finished[0], cut, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ONE_THREAD
        )
        deadline = time.monotonic() + 120
        while not reached(cut):
            assert process.poll() is None, name
            assert time.monotonic() < deadline, name
            time.sleep(0.0005)
        process.kill()
        assert process.wait() == -9, name
    done = subprocess.run(command(finished[0], cut, "--resume"), capture_output=True, text=True, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert signature(replace(finished[0], folder=cut)) == signature(uninterrupted)


@pytest.mark.slow
def test_a_disk_that_is_full_again_and_again(
    finished: tuple[StagedRun, Extension], uninterrupted: StagedRun, small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    """It had room at the beginning, and gets it back; every time before, the error says what cannot be written."""
    disk, said = small_disk(20_000_000), []
    dtype = open_run(uninterrupted.folder).dtype
    begin_run(replace(finished[0], folder=disk / "run", dtype=dtype), resume=False)
    used = shutil.disk_usage(disk).used // 1024
    for room in (20, 100, 250, 500, 750, 1000, 1250, 1500, 2000, 3000, 8000):
        subprocess.run(["mount", "-o", f"remount,size={used + room}k", str(disk)], check=True)
        run = [*command(finished[0], tmp_path / "run")[:-3], "-o", str(disk / "run"), "--json", "--resume"]
        done = subprocess.run(run, capture_output=True, text=True, env=ONE_THREAD)
        if done.returncode == 0:
            break
        assert done.returncode == 2, done.stderr
        error = " ".join(done.stderr.split())
        assert "Traceback" not in error
        assert "error: cannot write" in error, error
        said.append(error)
    assert done.returncode == 0
    assert len(said) >= 4
    assert any("training: " in error for error in said)
    assert signature(replace(finished[0], folder=disk / "run")) == signature(uninterrupted)


def test_the_average_that_is_best_on_held_out_text_is_taken(begun: Begun, tmp_path: Path) -> None:
    """Short rows with the original RoPE, long windows with the long factors; the documents are not trained on."""
    auto = begun(tmp_path / "auto", with_finetune(FAR, average="auto"), **QUICK)
    long = extend(auto).long
    record = json.loads((auto.stage_folder(1) / "average.json").read_text())
    losses = {float(share): values["short"] + values["long"] for share, values in record["losses"].items()}
    assert tuple(losses) == average_test.SHARES
    assert record["average"] == min(losses, key=losses.__getitem__)
    given = begun(tmp_path / "given", with_finetune(FAR, average=record["average"]), **QUICK)
    plain = begun(tmp_path / "plain", with_finetune(FAR, average=0.0), **QUICK)
    for run in (given, plain):
        extend(run)
    running.assert_equal(auto.stage_folder(1) / "model", given.stage_folder(1) / "model")

    stage = auto.plan.stages[0]
    windows = auto.data.held_out_windows(stage)
    texts = {document.tobytes() for document in auto.data.windows(stage).documents}
    assert texts.isdisjoint(document.tobytes() for document in windows.documents)
    model, _ = load(str(plain.stage_folder(1) / "model"), dtype="float32")
    found: dict[str, list[float]] = {"short": [], "long": []}
    for inputs in (windows[i] for i in range(len(windows))):
        ids, labels, positions = (torch.from_numpy(inputs[name]) for name in ("input_ids", "labels", "position_ids"))
        short = bool(positions.max() < running.L0)
        bias = [torch.from_numpy(inputs[name]) for name in ("chunk_ids", "key_bias")] if "key_bias" in inputs else []
        mask = sparse_masks(model, positions, *bias) if bias else None
        with patch(model, Scaling.identity(running.ROPE) if short else long), torch.inference_mode():
            out = model(input_ids=ids, position_ids=positions, attention_mask=mask, labels=labels)
        found["short" if short else "long"].append(out.loss.item())
    for kind, values in found.items():
        assert len(values) >= len(windows) // 2 - 4
        assert np.mean(values) == pytest.approx(record["losses"]["0"][kind], abs=0.03)  # its weights were rounded


@pytest.mark.parametrize("value", ["1.0", "-0.1", "'best'", "true"])
def test_an_average_that_is_none_is_refused(value: str) -> None:
    text = f"version = 1\n[[stages]]\nlength = '2k'\n[stages.finetune]\nsteps = 3\naverage = {value}\n"
    with pytest.raises(LongRopeError, match=r"stages\[0\]\.finetune\.average = .*: choose auto, or a share from 0"):
        parse_plan(text)
