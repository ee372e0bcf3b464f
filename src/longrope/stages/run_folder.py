"""The folder of a staged run: its plan, and the paths of its outputs."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from longrope.checks import torch_name
from longrope.errors import LongRopeError
from longrope.formats.load_factors import load_extension, load_factors
from longrope.models.load import load, load_config, load_tokenizer
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling, check_rope
from longrope.schemes import attention_factor, is_scheme
from longrope.stages.plan import Plan, load_plan, parse_plan
from longrope.stages.run_data import RunData
from longrope.stages.trainer_arguments import wants_liger

OnProgress = Callable[[str, int, int, str], None]  # the step's name, units done, units in all, a note such as the loss
VERSION = 1


@dataclass(frozen=True)
class StagedRun:
    """A folder in which a plan is carried out on a model; finished steps are in it, and the others follow.

    Args:
        folder: The run's folder.
        model: Name of the model that the plan begins with.
        plan: The plan; a name or a file is loaded as by `load_plan`.
        device: A torch device.
        dtype: Dtype of searches and evaluations, a key of `DTYPES` or a torch dtype.
        report_to: Service that fine-tuning reports to, as transformers' Trainer names it.
        launch: Command that starts several processes for fine-tuning, such as accelerate launch …; empty for this one.
        launch_options: Options of ``longrope finetune`` in these processes, beside those that the run decides.
        on_progress: Function that is called with the progress of each step.
    """

    folder: Path
    model: str
    plan: Plan
    device: str = "cpu"
    dtype: str = "auto"
    report_to: str = "none"
    launch: Sequence[str] = ()
    launch_options: Sequence[str] = ()
    on_progress: OnProgress = lambda *_: None

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        if not isinstance(self.model, (str, Path)):
            raise LongRopeError(f"model = a {type(self.model).__name__}: a run loads it itself. Give its name.")
        object.__setattr__(self, "model", str(self.model))
        if not isinstance(self.plan, Plan):
            object.__setattr__(self, "plan", load_plan(self.plan))
        for name in ("device", "dtype"):
            object.__setattr__(self, name, torch_name(getattr(self, name)))

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

    @property
    def training_command(self) -> Sequence[str]:
        """Command that starts the processes of a fine-tuning; empty for this process.

        Liger's kernels, which cannot be removed again, get a process of their own.
        """
        return self.launch or ((sys.executable,) if wants_liger(self.device) else ())

    def stage_folder(self, number: int) -> Path:
        """Return the folder of a stage, counted from 1."""
        return self.folder / f"stage-{number}"

    def training_step(self, number: int) -> str:
        """Return the name of a stage's fine-tuning in reports of progress."""
        return f"stage {number}: fine-tune at {self.plan.stages[number - 1].length:,}"

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

    @property
    def is_measured(self) -> bool:
        """Whether all is done that needs the documents."""
        measures = self.plan.evaluation.lengths != ()
        return (self.folder / "extension.json").exists() and (not measures or (self.folder / "results.json").exists())

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

    @property
    def factors_digest(self) -> str:
        """Fingerprint of the factors that the plan reads from files."""
        scalings = [self.scaling_from_file(number) for number in range(1, len(self.plan.stages) + 1)]
        texts = [scaling.to_json() for scaling in scalings if scaling is not None]
        return hashlib.sha256("".join(texts).encode()).hexdigest()[:16] if texts else ""

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


def open_run(folder: Path, **fields: Any) -> StagedRun:
    """Return the run that a folder holds; ``fields`` are the fields of `StagedRun` that it does not record.

    Raises:
        LongRopeError: If the folder does not hold a run.
    """
    record = read_record(folder)
    return StagedRun(folder, record.model, record.plan, dtype=record.dtype, **fields)


class RunRecord(NamedTuple):
    """The contents of ``run.json``; the digests at the end are None in a run of an earlier version."""

    model: str
    plan: Plan
    dtype: str
    documents: str | None
    weights: str | None
    factors: str | None


def read_record(folder: Path) -> RunRecord:
    """Return what the ``run.json`` of a run's folder records.

    Raises:
        LongRopeError: If the folder holds no run, or one of another version.
    """
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["version"] == VERSION:
            plan = parse_plan(record["plan"], str(path))
            return RunRecord(
                record["model"],
                plan,
                record["dtype"],
                record.get("documents"),
                record.get("weights"),
                record.get("factors"),
            )
    except (OSError, ValueError, KeyError, TypeError):
        raise LongRopeError(
            f"{path.parent} holds no run of longrope extend: its run.json is missing or damaged"
        ) from None
    raise LongRopeError(f"{path}: version = {record['version']!r}, but this longrope reads {VERSION}: upgrade longrope")
