"""The folder of a run: its plan, and where everything lies."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from longrope.errors import LongRopeError
from longrope.formats.load_factors import load_extension, load_factors
from longrope.models.load import load_config, load_tokenizer
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling, check_rope
from longrope.schemes import attention_factor, is_scheme
from longrope.stages.plan import Plan, parse_plan
from longrope.stages.requirements import check_requirements
from longrope.stages.run_data import RunData
from longrope.storage.atomic import write_json, write_text
from longrope.storage.lock import LOCK, claim_output

Tell = Callable[[str, int, int, str], None]  # part of the work, done, of how much, what to say of it
VERSION = 1
# what a run leaves that was refused or died in `begin_run`
BEGUN = (LOCK, "tokens", "plan.toml", ".plan.toml.", ".run.json.")


@dataclass(frozen=True)
class StagedRun:
    """A folder in which a plan is carried out on a model: what is done is in it, what is not is done next.

    Args:
        folder: of the run.
        model: name of the model that the plan begins with.
        plan: what is to be done.
        device: a torch device.
        dtype: of searches and evaluations, a key of `DTYPES`.
        report_to: where fine-tuning reports to, in the Trainer's words.
        launch: words that start several processes for fine-tuning, such as accelerate launch …; here if empty.
        tell: hears of the progress.
    """

    folder: Path
    model: str
    plan: Plan
    device: str = "cpu"
    dtype: str = "auto"
    report_to: str = "none"
    launch: Sequence[str] = ()
    tell: Tell = lambda *_: None

    @cached_property
    def rope(self) -> Rope:
        """The plain geometry of the model."""
        return Rope.of(load_config(self.model))

    @cached_property
    def material(self) -> RunData:
        """The plan's documents."""
        return RunData(self.plan, self.rope, load_tokenizer(self.model), self.folder / "tokens")

    def stage(self, number: int) -> Path:
        """The folder of a stage, 1, 2 …."""
        return self.folder / f"stage-{number}"

    def trained_before(self, number: int) -> int:
        """The last stage before this one that fine-tunes; 0 if there is none."""
        return max((i for i in range(1, number) if self.plan.stages[i - 1].finetune is not None), default=0)

    def weights(self, number: int) -> str:
        """The name of the model that a stage begins with."""
        return self.located(self.begins_with(number))

    @property
    def final_weights(self) -> str:
        """Name of the model that the last fine-tuning made; the plan's model if no stage fine-tunes."""
        return self.weights(len(self.plan.stages) + 1)

    def begins_with(self, number: int) -> str:
        """The same as it stands in files that may move with the run's folder."""
        last = self.trained_before(number)
        return f"stage-{last}/model" if last else self.model

    def located(self, name: str) -> str:
        """What `begins_with` gives, as a name that can be loaded."""
        return name if name == self.model else str(self.folder / name)

    def factors(self, number: int) -> Scaling:
        """The long factors that a stage found."""
        return load_extension(self.stage(number) / "extension.json").long

    def given(self, number: int) -> Scaling | None:
        """The factors of a stage that the plan takes from a file.

        Raises:
            LongRopeError: if they are another rope's.
        """
        stage = self.plan.stages[number - 1]
        if stage.factors == "search" or is_scheme(stage.factors):
            return None
        found = load_factors(stage.factors)
        check_rope(found, self.rope, f"stages[{number - 1}].factors = {stage.factors!r}")
        long = replace(found.long if isinstance(found, Extension) else found, length=stage.length)
        return Extension.of(self.rope, long).long

    def attention(self, number: int) -> float:
        """The attention factor of a stage."""
        given = self.given(number)
        if given is not None:
            return given.attention_factor
        return attention_factor(self.plan.attention, self.rope, self.plan.stages[number - 1].length)

    @property
    def short_attention(self) -> float:
        """The attention factor that the last weights have seen short sequences with; it is kept in the recovery."""
        last = self.trained_before(len(self.plan.stages) + 1)
        how = self.plan.stages[last - 1].finetune if last else None
        return 1.0 if how is None or how.short else self.attention(last)


def begin_run(run: StagedRun, *, resume: bool) -> None:
    """Make a run's folder, or see that it is this run's.

    Raises:
        LongRopeError: if the folder holds a run and ``resume`` is False, or one of another plan or model; if the plan
            does not fit the model or its documents are too few.
    """
    path = run.folder / "run.json"
    if path.exists():
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
        if not resume:
            raise LongRopeError(f"{run.folder} exists; continue it with --resume or choose another output with -o")
        return
    if run.folder.is_dir() and not all(path.name.startswith(BEGUN) for path in run.folder.iterdir()):
        raise LongRopeError(f"{run.folder} exists and holds no run; choose another output with -o")
    claim_output(run.folder, overwrite=True, folder=True)
    run.plan.fits(run.rope)
    check_requirements(run.plan, device=run.device, launch=run.launch, report_to=run.report_to)
    for number in range(1, len(run.plan.stages) + 1):
        run.given(number)
    run.material.check()
    write_text(run.folder / "plan.toml", run.plan.to_toml())
    write_json(path, {"version": VERSION, "model": run.model, "dtype": run.dtype, "plan": run.plan.to_toml()})


def open_run(folder: Path, **given: Any) -> StagedRun:
    """The run that a folder holds; ``given`` are the other fields of `StagedRun`.

    Raises:
        LongRopeError: if it holds none.
    """
    model, plan, dtype = _read(folder / "run.json")
    return StagedRun(folder, model, plan, dtype=dtype, **given)


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
