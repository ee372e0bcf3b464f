"""Fine-tuning in processes that another program starts, and files that are safe on the disk."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from accelerate.utils import get_int_from_env

from longrope.errors import LongRopeError
from longrope.stages.run_folder import StagedRun


def launch_finetuning(run: StagedRun, number: int) -> None:
    """Fine-tune a stage in processes that a program starts: ``longrope finetune`` in each.

    Raises:
        LongRopeError: If the program cannot be run, or ends without the stage's weights.
    """
    launch = run.training_command
    run.on_progress(run.training_step(number), 0, 1, "")  # the processes report the rest
    command = [*launch, "-m", "longrope", "finetune", str(run.folder), str(number), "--device", run.device]
    command += ["--report-to", run.report_to, *run.launch_options]
    try:
        code = subprocess.run(command, stdout=2, check=False).returncode  # standard error, as the output may be JSON
    except OSError as error:
        raise LongRopeError(f"launch = {launch[0]!r} cannot be run: {error.strerror}") from None
    if code or not (run.stage_folder(number) / "model").exists():
        raise LongRopeError(
            f"launch = {' '.join(launch)!r}: fine-tuning stage {number} ended with code {code}; "
            "its messages are above; then continue with --resume"
        )


def is_first_process() -> bool:
    """Return whether this is the only process or the first of its launch, as accelerate, torchrun or MPI number it."""
    return get_int_from_env(["RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"], 0) == 0


def sync_folder(folder: Path) -> None:
    """Sync all files below a folder to the disk, before the folder gets the name of complete weights."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
