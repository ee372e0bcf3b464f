"""Begin a staged run in its folder, or continue it: everything is checked before the first step."""

from __future__ import annotations

from pathlib import Path

from longrope.cost.model_shape import ModelShape
from longrope.errors import LongRopeError
from longrope.models.adapter_folder import base_of, is_switched
from longrope.models.weights_digest import weights_digest
from longrope.stages.requirements import check_disk, check_model_fits, check_requirements
from longrope.stages.run_folder import VERSION, StagedRun, read_record
from longrope.storage.atomic import write_json, write_text
from longrope.storage.lock import LOCK, claim_output

# files of a run that `begin_run` refused, or that was killed within it
UNFINISHED_START = (LOCK, "tokens", "plan.toml", ".plan.toml.", ".run.json.", "progress.log")


def begin_run(run: StagedRun, *, resume: bool = False, heading: str = "") -> None:
    """Make a run's folder, or check that the folder holds this run.

    Args:
        run: The run.
        resume: Whether the folder may hold it already.
        heading: Comment at the top of the folder's ``plan.toml``.

    Raises:
        LongRopeError: If the folder holds a run and ``resume`` is False, or holds a run of another plan, model or
            dtype, or one with other documents; if the plan does not fit the model, its documents are too few, or
            something is missing that fine-tuning needs, such as room on the disk.
    """
    path = run.folder / "run.json"
    if path.exists():
        _check_same_run(run)
        if not resume:
            raise LongRopeError(f"{run.folder} exists; continue it with --resume or choose another output with -o")
        if not run.is_measured:
            check_documents(run)
            _check_requirements(run)
        return
    check_no_other_files(run.folder)
    claim_output(run.folder, overwrite=True, folder=True)
    if is_switched(run.model):
        raise LongRopeError(
            f"model = {run.model!r}: an adapter that is switched with its factors is not extended further. "
            f"Begin with its base model, {base_of(run.model)}."
        )
    run.plan.check_fits(run.rope)
    check_model_fits(run.plan, run.config, run.device)
    check_disk(run.plan, ModelShape.of(run.config, run.dtype), run.folder, dtype=run.config.dtype)
    _check_requirements(run)
    for number in range(1, len(run.plan.stages) + 1):
        run.scaling_from_file(number)
    run.data.check()
    write_text(run.folder / "plan.toml", heading + run.plan.to_toml())
    record = {"version": VERSION, "model": run.model, "dtype": run.dtype, "plan": run.plan.to_toml()}
    digests = {"documents": run.data.digest, "weights": weights_digest(run.model), "factors": run.factors_digest}
    write_json(path, record | digests)


def check_documents(run: StagedRun) -> None:
    """Refuse to continue a run with other documents than it was begun with.

    They would be split otherwise, and documents that were trained on could be tested on. A run of an earlier version,
    which recorded no digest of them, is not refused.

    Raises:
        LongRopeError: If a document was added, removed, renamed or changed.
    """
    begun_with = read_record(run.folder).documents
    if begun_with is not None and begun_with != run.data.digest:
        data = run.plan.data
        sources = " and ".join(repr(source) for source in (data.source or "stdlib", data.train) if source is not None)
        raise LongRopeError(
            f"data = {sources}: the documents are not those that {run.folder} was begun with, so it could test on "
            "documents that it has trained on. Restore them, or begin another run with -o."
        )


def _check_requirements(run: StagedRun) -> None:
    """Check what the stages need that are not fine-tuned yet."""
    numbers = range(1, len(run.plan.stages) + 1)
    trained = [number for number in numbers if (run.stage_folder(number) / "model").exists()]
    rated = [number for number in numbers if (run.stage_folder(number) / "training" / "rate.json").exists()]
    check_requirements(
        run.plan, device=run.device, launch=run.launch, report_to=run.report_to, trained=trained, rated=rated
    )


def check_no_other_files(folder: Path) -> None:
    """Refuse a folder that holds files which no run left there.

    Raises:
        LongRopeError: If it does.
    """
    if folder.is_dir() and not all(path.name.startswith(UNFINISHED_START) for path in folder.iterdir()):
        raise LongRopeError(f"{folder} exists and holds no run; choose another output with -o")


def _check_same_run(run: StagedRun) -> None:
    record = read_record(run.folder)
    if record.model != run.model:
        raise LongRopeError(f"{run.folder} is a run of model {record.model}; choose another output with -o")
    if record.weights not in (None, weights_digest(run.model)):
        raise LongRopeError(
            f"{run.folder} was begun with other weights of {run.model}. Restore them, or begin another run with -o."
        )
    if record.plan != run.plan:
        raise LongRopeError(
            f"{run.folder} is the run of another plan, {run.folder / 'plan.toml'}; "
            "resume with that one, or choose another output with -o"
        )
    if record.factors not in (None, run.factors_digest):
        names = ", ".join(repr(stage.factors) for stage in run.plan.stages if Path(stage.factors).is_file())
        raise LongRopeError(
            f"{run.folder} was begun with other factors in stages.factors = {names}. Restore the file, "
            "or begin another run with -o."
        )
    if record.dtype != run.dtype:
        raise LongRopeError(
            f"{run.folder} was begun with dtype {record.dtype}, now {run.dtype}; resume with the same one"
        )
