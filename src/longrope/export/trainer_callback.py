"""A callback by which transformers' own Trainer trains with factors and saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from longrope.export.apply import apply
from longrope.export.carried_factors import extension_to_write, has_applied_factors, holds
from longrope.export.hf_config import factors_in_mode, for_mode
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.storage.atomic import write_text


class LongRopeCallback(TrainerCallback):
    """Callback that trains a model with factors and writes them into every checkpoint.

    It applies the factors as `apply` does when the Trainer is made, or when training begins if it was added later. A
    model that has these factors already stays as it is. Each checkpoint then has the factors in its config, and an
    ``extension.json``. So does the output folder, once ``trainer.save_model()`` has written the final weights there.

    A Trainer of a PEFT model saves the adapter without a config. The folder then gets a ``factors.json`` with the
    factors that the base model lacks. `longrope.load` of the folder merges the adapter, and the factors are for the
    model that it returns: `longrope.patch` it with them, or write both by
    ``longrope export FOLDER --factors FOLDER/factors.json``.

    Args:
        scaling: Extension of the model, or a scaling of some length.
        mode: ``static`` (the long factors at every length) or ``dual`` (the short ones up to L0).
    """

    def __init__(self, scaling: Scaling | Extension, *, mode: str = "static") -> None:
        self.scaling, self.mode = scaling, mode
        self.file: tuple[str, Scaling | Extension] | None = None  # name and content, for each checkpoint

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Apply the factors to the Trainer's model."""
        self._apply(kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Apply the factors to the Trainer's model unless it has them."""
        self._apply(kwargs["model"])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the factors' file into this step's checkpoint; the Trainer has written the applied config there."""
        if state.is_world_process_zero:
            self._write(Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the factors' file into the output folder, where ``trainer.save_model()`` writes the final weights."""
        if state.is_world_process_zero:
            self._write(Path(str(args.output_dir)))

    def _apply(self, model: PreTrainedModel) -> None:
        config, applied = model.config.to_dict(), has_applied_factors(model)
        extension = extension_to_write(config, self.scaling, Rope.of(model), self.mode, applied=applied)
        written = for_mode(extension, self.mode)
        if not holds(config, written):
            apply(model, self.scaling, mode=self.mode)
        if not getattr(model, "peft_config", None):
            self.file = "extension.json", written
        elif has_applied_factors(model):  # else the folder of the base model has them
            self.file = "factors.json", factors_in_mode(extension, self.mode)

    def _write(self, folder: Path) -> None:
        if self.file is not None and folder.is_dir():
            name, factors = self.file
            write_text(folder / name, factors.to_json())
