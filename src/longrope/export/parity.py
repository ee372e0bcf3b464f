"""A comparison of an exported checkpoint, opened by plain transformers, with the patched model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from longrope.errors import LongRopeError
from longrope.export.plain_logits import open_checkpoint, text_logits
from longrope.formats.load_factors import load_extension
from longrope.models.device_memory import explain_out_of_memory
from longrope.models.patch import evaluating, patch
from longrope.models.rotary_slot import find_rotary_slot
from longrope.models.runnable import check_loaded
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.units import token_counts

TOLERANCE = 1e-2
COMPARED = 16  # last tokens
MOST = 4096  # tokens of a text; in longer ones its positions are spread evenly


@dataclass(frozen=True)
class Parity:
    """The difference of some logits of one text: its root mean square over that of the logits.

    Args:
        length: Length of the text in tokens.
        difference: Relative difference; 0 if all logits are the same, NaN if some are not finite.
    """

    length: int
    difference: float

    @property
    def ok(self) -> bool:
        """Whether the logits agree; with another set of factors they differ by tens of percent."""
        return self.difference <= TOLERANCE

    @classmethod
    def of(cls, length: int, patched: Tensor, exported: Tensor) -> Parity:
        """Return the difference of the logits of a patched model and of an exported checkpoint."""
        square = (patched - exported).square().mean()
        return cls(length, (square / patched.square().mean()).sqrt().item() if square else square.item())


def check_parity(
    folder: str | os.PathLike[str], model: PreTrainedModel, lengths: Sequence[int | str] | int | str | None = None
) -> list[Parity]:
    """Compare a checkpoint with the model that it was made from, patched with the checkpoint's ``extension.json``.

    The comparison is made in float32. Of a text of more than `MOST` tokens it takes as many, whose positions are spread
    evenly: they choose the same factors as the whole text, and fit into memory.

    Args:
        folder: Folder of the checkpoint.
        model: Plain model, with weights of the checkpoint's dtype.
        lengths: Length or lengths to compare in tokens, such as ``"32k"``; L0 - 1, L0, L0 + 1 and L - 1 by default.

    Raises:
        LongRopeError: The folder is not a checkpoint that longrope wrote, or was made from another model.
    """
    check_loaded(model)
    extension = load_extension(Path(folder) / "extension.json")
    original = extension.rope.original_length
    lengths = token_counts("lengths", lengths, 1) or (original - 1, original, original + 1, extension.length - 1)
    try:
        exported = open_checkpoint(str(folder), str(model.device))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise LongRopeError(f"{folder} cannot be loaded: {reason}. Export the model again.") from error
    vocab_size = model.config.get_text_config().vocab_size
    if exported.config.get_text_config().vocab_size != vocab_size:
        raise LongRopeError(
            f"{folder}: its vocab_size is not the model's ({vocab_size}). Give the model that it was made from."
        )
    positions = [spread_positions(length, MOST) for length in lengths]
    texts = [random_text(model, each, indices=torch.arange(len(each))[-COMPARED:]) for each in positions]
    parities = []
    rope = find_rotary_slot(model).rope
    with in_float32(model), evaluating(model):
        for length, text in zip(lengths, texts, strict=True):
            factors = _relative(extension, rope, length) if rope.factors and not extension.rope.factors else extension
            with patch(model, factors), explain_out_of_memory(length, f"on {model.device}", "give shorter --lengths"):
                parities.append(Parity.of(length, text_logits(model, text), text_logits(exported, text)))
    return parities


def spread_positions(length: int, most: int) -> Tensor:
    """Return positions from 0 to the last one of a length, spread evenly: all of them, or ``most``."""
    return torch.linspace(0, length - 1, min(length, most), dtype=torch.float64).round().long()


def _relative(extension: Extension, rope: Rope, length: int) -> Scaling:
    """Return the factors of a checkpoint at a length, relative to those that the model's own checkpoint carries.

    Raises:
        LongRopeError: The checkpoint was made from a model of another geometry.
    """
    if (extension.rope.dim, extension.rope.base) != (rope.dim, rope.base):
        raise LongRopeError(
            f"extension.rope = {extension.rope}: the model has {rope}. Give the model of the checkpoint."
        )
    total = extension.at(length)
    return replace(
        total,
        factors=[factor / carried for factor, carried in zip(total.factors, rope.factors, strict=True)],
        attention_factor=total.attention_factor / rope.attention_factor,
        length=extension.length,
    )


def random_text(model: PreTrainedModel, positions: Tensor, indices: Tensor) -> dict[str, Tensor]:
    """Return a random text as the inputs of `text_logits`.

    Args:
        model: Model whose vocabulary the text is drawn from.
        positions: Position of every token, ``(tokens,)``.
        indices: Indices of the tokens whose logits are compared.
    """
    vocab_size = model.config.get_text_config().vocab_size
    tokens = torch.randint(0, vocab_size, (1, len(positions)), generator=torch.Generator().manual_seed(0))
    return {"input_ids": tokens, "position_ids": positions[None], "logits_to_keep": indices}


@contextmanager
def in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Raise half-precision weights and buffers to float32 for a block, one after another, then restore them."""
    tensors = (*model.parameters(), *model.buffers())
    halves = [(tensor, tensor.dtype) for tensor in tensors if tensor.dtype in (torch.float16, torch.bfloat16)]
    try:
        for tensor, _ in halves:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in halves:
            tensor.data = tensor.data.to(dtype)
