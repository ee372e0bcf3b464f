"""Does an exported checkpoint, opened by plain transformers, compute what the patched model computes?"""

from __future__ import annotations

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
KEPT = 16


@dataclass(frozen=True)
class Parity:
    """The last logits of both at one length: the root mean square of their difference over that of the logits."""

    length: int
    difference: float

    @property
    def ok(self) -> bool:
        """Whether they agree: another set of factors would differ by tens of percent."""
        return self.difference <= TOLERANCE


def check_parity(folder: Path, model: PreTrainedModel, lengths: Sequence[int] | None = None) -> list[Parity]:
    """Compare a checkpoint with the model that it was made from, patched with the checkpoint's ``extension.json``.

    Args:
        folder: of the checkpoint.
        model: the plain model, with weights of the checkpoint's dtype; computes in float32 afterwards.
        lengths: in tokens; L0 - 1, L0, L0 + 1 and L - 1 if not given.

    Raises:
        LongRopeError: if the folder is no checkpoint made by longrope.
    """
    extension = load_extension(folder / "extension.json")
    original = extension.rope.original_length
    lengths = lengths or (original - 1, original, original + 1, extension.length - 1)
    try:
        opened: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        exported = opened.to(model.device).eval()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise LongRopeError(f"{folder} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    if exported.config.get_text_config().vocab_size != model.config.get_text_config().vocab_size:
        raise LongRopeError(f"{folder} was made from another model: their vocab_size differ")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.config.get_text_config().vocab_size, (1, max(lengths)), generator=generator).to(
        model.device
    )
    with patch(model.float(), extension):
        ours = [_last_logits(model, tokens[:, :length]) for length in lengths]
    theirs = [_last_logits(exported, tokens[:, :length]) for length in lengths]
    return [
        Parity(length, ((a - b).square().mean() / a.square().mean()).sqrt().item())
        for length, a, b in zip(lengths, ours, theirs, strict=True)
    ]


@torch.inference_mode()
def _last_logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    with explain_out_of_memory(tokens.shape[1], f"on {model.device}", "give shorter --lengths"):
        logits = model(input_ids=tokens, use_cache=False, logits_to_keep=KEPT).logits[:, -KEPT:]
    return logits.cpu().double()  # Apple's GPUs have no doubles
