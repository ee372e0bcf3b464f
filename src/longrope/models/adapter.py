"""A LoRA adapter that works where the factors rescale: up to L0 the model has its original weights and RoPE."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longrope.errors import LongRopeError
from longrope.models.adapter_folder import CONFIG, FACTORS, require_peft
from longrope.storage.atomic import write_json, write_text

NAME = "long_context"  # of the adapter in the model
ATTRIBUTE = "_switched_adapter"  # of the model


class SwitchedAdapter:
    """The LoRA layers of a model, which are on after its rotary module used factors other than 1, and else off.

    Args:
        model: Model with an adapter of the name `NAME`.
        rotaries: The model's own rotary modules, which have no factors.
    """

    def __init__(self, model: PreTrainedModel, rotaries: Sequence[nn.Module]) -> None:
        scaled: list[Any] = [module for module in model.modules() if isinstance(getattr(module, "scaling", None), dict)]
        self.layers = [layer for layer in scaled if NAME in layer.scaling]
        self.strengths = [layer.scaling[NAME] for layer in self.layers]
        self.use(False)
        turn_off = self._turn_off  # a method, which deepcopy copies too
        self.hooks = [rotary.register_forward_pre_hook(turn_off) for rotary in rotaries]

    def _turn_off(self, _module: nn.Module, _inputs: object) -> None:
        self.use(False)

    def use(self, rows: Tensor | bool) -> None:
        """Turn the adapter on or off, for all rows or for each, bool ``(rows,)``.

        Raises:
            LongRopeError: Rows differ, and the adapter changes weights of experts.
        """
        if isinstance(rows, Tensor) and (rows == rows[0]).all():
            rows = bool(rows[0])
        # peft wraps a weight of several experts in a layer with the parameter's name
        if isinstance(rows, Tensor) and any(hasattr(layer, "parameter_name") for layer in self.layers):
            raise LongRopeError(
                f"input_ids has {len(rows)} rows, and the factors rescale only some of them: the adapter changes the "
                "weights of the experts, which all rows share. Run short and long rows in batches of their own."
            )
        for layer, strength in zip(self.layers, self.strengths, strict=True):
            layer.scaling[NAME] = RowStrength(strength, rows) if isinstance(rows, Tensor) else strength * rows


class RowStrength:
    """The strength of a LoRA layer in some rows of a batch.

    Args:
        strength: Factor of the layer's output there.
        rows: Whether each row has it, bool ``(rows,)``.
    """

    def __init__(self, strength: float, rows: Tensor) -> None:
        self.strength, self.rows = strength, rows

    def __rmul__(self, output: Tensor) -> Tensor:
        by_row = output.reshape(len(self.rows), -1, output.shape[-1])  # experts get (rows * tokens, hidden)
        return (by_row * (self.strength * self.rows.to(output.device))[:, None, None]).view_as(output)


def switched_adapter(model: nn.Module) -> SwitchedAdapter | None:
    """Return the adapter of a model that follows its factors; None if it has none."""
    return getattr(model, ATTRIBUTE, None)


def attach_adapter(model: PreTrainedModel, rotaries: Sequence[nn.Module], folder: Path) -> None:
    """Add the adapter in a folder to its base model, whose rotary modules are ``rotaries``, in place.

    Raises:
        LongRopeError: The package ``peft`` is missing.
    """
    require_peft(folder)
    conversions = vars(model).get("_weight_conversions")
    with no_peft_warnings():
        model.load_adapter(str(folder), adapter_name=NAME)
    vars(model)["_weight_conversions"] = conversions  # load_adapter leaves those of the adapter's names
    setattr(model, ATTRIBUTE, SwitchedAdapter(model.eval(), rotaries))


@contextmanager
def no_peft_warnings() -> Iterator[None]:
    """Drop what peft 0.21 warns of in vain."""
    with warnings.catch_warnings():
        # it reads transformers' old name of activation checkpointing
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        # it looks for the config of a GGUF or a model of the hub, to see a change of the vocabulary: there is none
        warnings.filterwarnings("ignore", "Could not find a config file", UserWarning)
        # patterns that match a parameter of experts count, though it compares them with modules alone
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys", RuntimeWarning)
        yield


def describe_adapter(folder: Path, *, base: str, factors: str) -> None:
    """Complete a folder that ``peft`` wrote: the name of the base model as for `longrope.load`, and factors as JSON."""
    (folder / "README.md").unlink(missing_ok=True)  # an empty card
    fields = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    name = str(Path(base).resolve()) if Path(base).exists() else base
    write_json(folder / CONFIG, fields | {"base_model_name_or_path": name})
    write_text(folder / FACTORS, factors)


@torch.no_grad()
def merge_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """Add the adapter that follows the factors to the weights for good, in place, and return the model."""
    adapter = switched_adapter(model)
    if adapter is None:
        return model
    for hook in adapter.hooks:
        hook.remove()
    adapter.use(True)
    names = {module: name for name, module in model.named_modules()}
    for layer in reversed(adapter.layers):  # a wrapper of an expert's weight may hold another one
        layer.merge(adapter_names=[NAME])
        model.set_submodule(names[layer], layer.get_base_layer())
    delattr(model, ATTRIBUTE)
    del model.peft_config
    model._hf_peft_config_loaded = False
    return model
