"""A comparison of an exported checkpoint, opened by plain transformers, with the patched model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from longrope.errors import LongRopeError
from longrope.formats.load_factors import load_extension
from longrope.models.device_memory import explain_out_of_memory
from longrope.models.patch import patch

TOLERANCE = 1e-2
COMPARED = 16  # last tokens


@dataclass(frozen=True)
class Parity:
    """The difference of the last logits at one length: its root mean square over that of the logits.

    Args:
        length: Length of the sequence in tokens.
        difference: Relative difference; 0 if all logits are the same.
    """

    length: int
    difference: float

    @property
    def ok(self) -> bool:
        """Whether the logits agree; with another set of factors they differ by tens of percent."""
        return self.difference <= TOLERANCE


def check_parity(
    folder: str | os.PathLike[str], model: PreTrainedModel, lengths: Sequence[int] | None = None
) -> list[Parity]:
    """Compare a checkpoint with the model that it was made from, patched with the checkpoint's ``extension.json``.

    Args:
        folder: Folder of the checkpoint.
        model: Plain model, with weights of the checkpoint's dtype; it computes in float32 afterwards.
        lengths: Lengths to compare in tokens; L0 - 1, L0, L0 + 1 and L - 1 by default.

    Raises:
        LongRopeError: The folder is not a checkpoint that longrope wrote, or was made from another model.
    """
    extension = load_extension(Path(folder) / "extension.json")
    original = extension.rope.original_length
    lengths = lengths or (original - 1, original, original + 1, extension.length - 1)
    try:
        opened: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        exported = opened.to(model.device).eval()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise LongRopeError(f"{folder} cannot be loaded: {reason}. Export the model again.") from error
    vocab_size = model.config.get_text_config().vocab_size
    if exported.config.get_text_config().vocab_size != vocab_size:
        raise LongRopeError(
            f"{folder}: its vocab_size is not the model's ({vocab_size}). Give the model that it was made from."
        )
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocab_size, (1, max(lengths)), generator=generator).to(model.device)
    with patch(model.float(), extension):
        patched_logits = [_last_logits(model, tokens[:, :length]) for length in lengths]
    exported_logits = [_last_logits(exported, tokens[:, :length]) for length in lengths]
    return [
        Parity(length, ((patched - logits).square().mean() / patched.square().mean()).sqrt().item())
        for length, patched, logits in zip(lengths, patched_logits, exported_logits, strict=True)
    ]


@torch.inference_mode()
def _last_logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return the last logits of a sequence in float64, on the CPU."""
    with explain_out_of_memory(tokens.shape[1], f"on {model.device}", "give shorter --lengths"):
        logits = model(input_ids=tokens, use_cache=False, logits_to_keep=COMPARED).logits[:, -COMPARED:]
    return logits.cpu().double()  # Apple's GPUs have no doubles
