"""An exponential moving average (EMA) of the weights that are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, TrainerCallback

from longrope.errors import LongRopeError


class MovingAverage(TrainerCallback):
    """A callback that averages the trained weights over the last steps, and in the end puts the average in their place.

    The average begins with the weights before the training. After each step it is ``decay`` times itself and
    ``1 - decay`` times the weights: about the mean of the last ``1/(1 - decay)`` steps. Checkpoints hold it.

    Args:
        decay: Share of the average that a step keeps, from 0 to 1.
        sharded: Whether each process holds a share of the weights (FSDP), and writes a file of its own.
    """

    def __init__(self, decay: float, *, sharded: bool) -> None:
        self.decay, self.sharded = decay, sharded
        self._averages: list[Tensor] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **inputs: Any) -> None:
        """Begin with the weights as they are, or with the average in the checkpoint that the training continues."""
        self._averages = [weight.clone() for weight in _trained_weights(inputs["model"])]
        if not state.global_step:
            return
        path = self._path(args, state)
        if not path.exists():
            raise LongRopeError(
                f"{path}: there is no such file. It holds the average of the weights; continue with as many processes "
                "as the training began with."
            )
        saved = load_file(path)
        for i, average in enumerate(self._averages):
            average.copy_(saved[str(i)])

    def on_step_end(self, args: Any, state: Any, control: Any, **inputs: Any) -> None:
        """Take a step of the average."""
        for average, weight in zip(self._averages, _trained_weights(inputs["model"]), strict=True):
            average.lerp_(weight, 1 - self.decay)

    def on_save(self, args: Any, state: Any, control: Any, **inputs: Any) -> None:
        """Write the average into the checkpoint."""
        if self.sharded or state.is_world_process_zero:
            save_file({str(i): average for i, average in enumerate(self._averages)}, self._path(args, state))

    def on_train_end(self, args: Any, state: Any, control: Any, **inputs: Any) -> None:
        """Put the average in the place of the trained weights."""
        for average, weight in zip(self._averages, _trained_weights(inputs["model"]), strict=True):
            weight.copy_(average)

    def _path(self, args: Any, state: Any) -> Path:
        rank = PartialState().process_index if self.sharded else 0
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / f"ema-{rank}.safetensors"


def _trained_weights(model: PreTrainedModel) -> list[Tensor]:
    """Return the trained weights, or the shares of them that this process holds."""
    weights = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
    return [weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights]
