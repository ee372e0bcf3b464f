"""Fine-tuning in processes that another program starts, and what a finished one leaves on the disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from accelerate.utils import get_int_from_env

from longrope.errors import LongRopeError
from longrope.stages.run_folder import StagedRun


def launched(run: StagedRun, number: int, launch: Sequence[str]) -> None:
    """Fine-tune a stage in processes that a program starts: ``longrope finetune`` in each.

    Raises:
        LongRopeError: if it cannot be run, or ends without the stage's weights.
    """
    command = [*launch, "-m", "longrope", "finetune", str(run.folder), str(number), "--device", run.device]
    command += ["--report-to", run.report_to]
    try:
        code = subprocess.run(command, stdout=2, check=False).returncode  # standard error, as the output may be JSON
    except OSError as error:
        raise LongRopeError(f"launch = {launch[0]!r} cannot be run: {error.strerror}") from None
    if code or not (run.stage(number) / "model").exists():
        raise LongRopeError(
            f"launch = {' '.join(launch)!r}: fine-tuning stage {number} ended with code {code}; "
            "see what it said above, then --resume"
        )


def first_process() -> bool:
    """Whether this is the first process of its launch, or the only one, by what accelerate, torchrun or MPI say."""
    return get_int_from_env(["RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"], 0) == 0


def settle(folder: Path) -> None:
    """Sync all files below a folder to the disk, before its name says that they are whole."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
