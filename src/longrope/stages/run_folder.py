"""The folder of a staged run: its plan, and the paths of its outputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from longrope.errors import LongRopeError
from longrope.formats.load_factors import load_extension, load_factors
from longrope.models.adapter_folder import base_of, is_switched
from longrope.models.load import load, load_config, load_tokenizer
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling, check_rope
from longrope.schemes import attention_factor, is_scheme
from longrope.stages.plan import Plan, parse_plan
from longrope.stages.requirements import check_model_fits, check_requirements
from longrope.stages.run_data import RunData
from longrope.storage.atomic import write_json, write_text
from longrope.storage.lock import LOCK, claim_output

OnProgress = Callable[[str, int, int, str], None]  # the step's name, units done, units in all, a note such as the loss
VERSION = 1
# files of a run that `begin_run` refused, or that was killed within it
UNFINISHED_START = (LOCK, "tokens", "plan.toml", ".plan.toml.", ".run.json.", "progress.log")


@dataclass(frozen=True)
class StagedRun:
    """A folder in which a plan is carried out on a model; finished steps are in it, and the others follow.

    Args:
        folder: The run's folder.
        model: Name of the model that the plan begins with.
        plan: The plan.
        device: A torch device.
        dtype: Dtype of searches and evaluations, a key of `DTYPES`.
        report_to: Service that fine-tuning reports to, as transformers' Trainer names it.
        launch: Command that starts several processes for fine-tuning, such as accelerate launch …; empty for this one.
        on_progress: Function that is called with the progress of each step.
    """

    folder: Path
    model: str
    plan: Plan
    device: str = "cpu"
    dtype: str = "auto"
    report_to: str = "none"
    launch: Sequence[str] = ()
    on_progress: OnProgress = lambda *_: None

    @cached_property
    def config(self) -> PreTrainedConfig:
        """Config of the model before any extension, with the plan's L0."""
        return load_config(self.model, original_length=self.plan.original_length)

    @cached_property
    def rope(self) -> Rope:
        """Geometry of the model before any extension."""
        return Rope.of(self.config)

    @cached_property
    def data(self) -> RunData:
        """Documents of the plan, tokenized for the model."""
        vocabulary = self.config.get_text_config().vocab_size
        return RunData(self.plan, self.rope, load_tokenizer(self.model), self.folder / "tokens", vocabulary)

    def stage_folder(self, number: int) -> Path:
        """Return the folder of a stage, counted from 1."""
        return self.folder / f"stage-{number}"

    def last_finetuned_before(self, number: int) -> int:
        """Return the number of the last stage before this one that fine-tunes; 0 if none does."""
        return max((i for i in range(1, number) if self.plan.stages[i - 1].finetune is not None), default=0)

    def weights(self, number: int) -> str:
        """Return the model that a stage begins with, as a name that can be loaded."""
        return self.weights_path(self.weights_name(number))

    @property
    def final_weights(self) -> str:
        """Model of the last fine-tuning, as a name that can be loaded; the plan's model if no stage fine-tunes."""
        return self.weights(len(self.plan.stages) + 1)

    @property
    def leaves_adapter(self) -> bool:
        """Whether the last fine-tuning leaves an adapter that is switched with the factors."""
        tuned = [stage.finetune for stage in self.plan.stages if stage.finetune is not None]
        return bool(tuned) and not tuned[-1].merge

    def weights_name(self, number: int) -> str:
        """Return the model that a stage begins with, relative to the run's folder, which may move."""
        last = self.last_finetuned_before(number)
        return f"stage-{last}/model" if last else self.model

    def weights_path(self, name: str) -> str:
        """Return a name of `weights_name` as one that can be loaded."""
        return name if name == self.model else str(self.folder / name)

    def load(self, name: str, *, dtype: str, device: str = "cpu") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load a model of `weights_path` with the plan's L0, as `longrope.models.load.load` does."""
        return load(name, dtype=dtype, device=device, original_length=self.plan.original_length)

    def long_scaling(self, number: int) -> Scaling:
        """Return the long factors of a finished stage."""
        return load_extension(self.stage_folder(number) / "extension.json").long

    def scaling_from_file(self, number: int) -> Scaling | None:
        """Return the factors of a stage that the plan reads from a file; None if it searches or names a scheme.

        Raises:
            LongRopeError: If the factors are for another rope.
        """
        stage = self.plan.stages[number - 1]
        if stage.factors == "search" or is_scheme(stage.factors):
            return None
        scaling = load_factors(stage.factors)
        check_rope(scaling, self.rope, f"stages[{number - 1}].factors = {stage.factors!r}")
        long = replace(scaling.long if isinstance(scaling, Extension) else scaling, length=stage.length)
        return Extension.of(self.rope, long).long

    def attention_factor(self, number: int) -> float:
        """Return the attention factor of a stage."""
        scaling = self.scaling_from_file(number)
        if scaling is not None:
            return scaling.attention_factor
        return attention_factor(self.plan.attention, self.rope, self.plan.stages[number - 1].length)

    @property
    def short_attention_factor(self) -> float:
        """Attention factor under which the final weights were trained on short sequences; the recovery begins there."""
        last = self.last_finetuned_before(len(self.plan.stages) + 1)
        finetune = self.plan.stages[last - 1].finetune if last else None
        return 1.0 if finetune is None or finetune.short else self.attention_factor(last)


def begin_run(run: StagedRun, *, resume: bool, heading: str = "") -> None:
    """Make a run's folder, or check that the folder holds this run.

    Args:
        run: The run.
        resume: Whether the folder may hold it already.
        heading: Comment at the top of the folder's ``plan.toml``.

    Raises:
        LongRopeError: If the folder holds a run and ``resume`` is False, or holds a run of another plan, model or
            dtype; if the plan does not fit the model or its documents are too few.
    """
    path = run.folder / "run.json"
    if path.exists():
        _check_same_run(run, path)
        if not resume:
            raise LongRopeError(f"{run.folder} exists; continue it with --resume or choose another output with -o")
        return
    check_no_other_files(run.folder)
    claim_output(run.folder, overwrite=True, folder=True)
    if is_switched(run.model):
        raise LongRopeError(
            f"model = {run.model!r}: an adapter that is switched with its factors is not extended further. "
            f"Begin with its base model, {base_of(run.model)}."
        )
    run.plan.check_fits(run.rope)
    check_model_fits(run.plan, run.config)
    check_requirements(run.plan, device=run.device, launch=run.launch, report_to=run.report_to)
    for number in range(1, len(run.plan.stages) + 1):
        run.scaling_from_file(number)
    run.data.check()
    write_text(run.folder / "plan.toml", heading + run.plan.to_toml())
    write_json(path, {"version": VERSION, "model": run.model, "dtype": run.dtype, "plan": run.plan.to_toml()})


def check_no_other_files(folder: Path) -> None:
    """Refuse a folder that holds files which no run left there.

    Raises:
        LongRopeError: If it does.
    """
    if folder.is_dir() and not all(path.name.startswith(UNFINISHED_START) for path in folder.iterdir()):
        raise LongRopeError(f"{folder} exists and holds no run; choose another output with -o")


def open_run(folder: Path, **fields: Any) -> StagedRun:
    """Return the run that a folder holds; ``fields`` are the fields of `StagedRun` that it does not record.

    Raises:
        LongRopeError: If the folder does not hold a run.
    """
    model, plan, dtype = _read(folder / "run.json")
    return StagedRun(folder, model, plan, dtype=dtype, **fields)


def _check_same_run(run: StagedRun, path: Path) -> None:
    model, plan, dtype = _read(path)
    if model != run.model:
        raise LongRopeError(f"{run.folder} is a run of model {model}; choose another output with -o")
    if plan != run.plan:
        raise LongRopeError(
            f"{run.folder} is the run of another plan, {path.parent / 'plan.toml'}; "
            "resume with that one, or choose another output with -o"
        )
    if dtype != run.dtype:
        raise LongRopeError(f"{run.folder} was begun with dtype {dtype}, now {run.dtype}; resume with the same one")


def _read(path: Path) -> tuple[str, Plan, str]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["version"] == VERSION:
            return record["model"], parse_plan(record["plan"], str(path)), record["dtype"]
    except (OSError, ValueError, KeyError, TypeError):
        raise LongRopeError(
            f"{path.parent} holds no run of longrope extend: its run.json is missing or damaged"
        ) from None
    raise LongRopeError(f"{path}: version = {record['version']!r}, but this longrope reads {VERSION}: upgrade longrope")
