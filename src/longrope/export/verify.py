"""Reopen an exported checkpoint in a fresh process, and refuse it unless it computes what the model computes."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor
from transformers import PreTrainedModel

from longrope.engines.predict import extension_in_config
from longrope.errors import LongRopeError
from longrope.export import plain_logits
from longrope.export.carried_factors import same_factors
from longrope.export.hf_config import factors_in_mode, for_mode
from longrope.export.parity import TOLERANCE, Parity, in_float32, random_text, spread_positions
from longrope.models.device_memory import explain_out_of_memory, free_memory
from longrope.models.patch import evaluating, patch
from longrope.scaling import Extension

BEYOND = 1024  # tokens after L0
TOKENS = 512  # of a text; in longer ones its positions are spread evenly
COMPARED = 9  # logits of each text
PROGRAM = (sys.executable, "-c", Path(plain_logits.__file__).read_text(encoding="utf-8"))
REMEDY = "Export without the comparison: check=False, on the command line --no-check."


@dataclass(frozen=True)
class ExpectedLogits:
    """Logits that an exported checkpoint must have.

    Args:
        lengths: Length of each text in tokens.
        texts: Texts as the inputs of `text_logits`.
        logits: Logits of the patched model for each text, in float64.
    """

    lengths: Sequence[int]
    texts: Sequence[dict[str, Tensor]]
    logits: Sequence[Tensor]

    @classmethod
    def of(cls, model: PreTrainedModel, extension: Extension, mode: str, *, carried: bool) -> ExpectedLogits:
        """Compute the logits of a model with factors, in float32, for one text of L0 tokens and one beyond.

        A text of the length that a model of two sets came with lies between them.

        Args:
            model: Model that the factors are for, or one that was loaded with these factors.
            extension: Factors of the checkpoint.
            mode: ``static`` (the long factors at every length) or ``dual``.
            carried: Whether the model was loaded with these factors.

        Raises:
            LongRopeError: The memory is too small for a copy in float32, or the logits are not finite.
        """
        if not fits_copy(model):
            raise LongRopeError(
                "check = True: the checkpoint is reopened and compared in a copy in float32, which does not fit in "
                f"memory ({_copy_memory(model) / 2**30:.1f} GiB). {REMEDY}"
            )
        written = for_mode(extension, mode)
        beyond = min(written.length, extension.rope.original_length + BEYOND)
        lengths = sorted({written.rope.original_length, extension.rope.original_length, beyond})
        if carried and not same_factors(extension_in_config(model.config.to_dict()).short, written.short):
            lengths = lengths[1:]  # its own short factors are not the ones that are written
        factors = factors_in_mode(extension, mode)
        texts = [_spread_text(model, length) for length in lengths]
        with (
            explain_out_of_memory(max(lengths), f"on {model.device}, in float32", REMEDY),
            in_float32(model),
            evaluating(model),
            patch(model, None if carried else factors),
        ):
            logits = [plain_logits.text_logits(model, text) for text in texts]
        for length, values in zip(lengths, logits, strict=True):
            if not values.isfinite().all():
                raise LongRopeError(
                    f"model: its logits are not finite in a text of {length} tokens, computed in float32"
                    f"{_broken_weights(model)}. Nothing was written. Load or train the weights again."
                )
        return cls(lengths, texts, logits)

    def check(self, folder: Path, output: Path) -> None:
        """Refuse a checkpoint that plain transformers cannot open, or that has other logits.

        Args:
            folder: Folder of the checkpoint.
            output: Name that the checkpoint is to get, for messages.

        Raises:
            LongRopeError: The checkpoint is refused.
        """
        for length, text, expected, reopened in zip(
            self.lengths, self.texts, self.logits, _reopened_logits(folder, self.texts, output), strict=True
        ):
            if not reopened.isfinite().all():
                raise _refused(output, f"has logits that are not finite in a text of {length} tokens")
            parity = Parity.of(length, expected, reopened)
            if not parity.ok:
                worst = (expected - reopened).square().mean(1).argmax()
                position = text["position_ids"][0, text["logits_to_keep"][worst]]
                raise _refused(
                    output,
                    f"computes other logits than the model: in a text of {length} tokens they differ by "
                    f"{parity.difference:.2g} of their size, most at position {position}; {TOLERANCE} can be rounding",
                )


def fits_copy(model: PreTrainedModel) -> bool:
    """Return whether the weights in float32, for the fresh process, fit in memory beside the model."""
    return _copy_memory(model) <= (free_memory("cpu") or math.inf)


def _copy_memory(model: PreTrainedModel) -> int:
    """Return the bytes of the weights in float32."""
    return 4 * sum(parameter.numel() for parameter in model.parameters())


def _spread_text(model: PreTrainedModel, length: int) -> dict[str, Tensor]:
    """Return a random text whose positions are spread over a length."""
    positions = spread_positions(length, TOKENS)
    return random_text(model, positions, indices=torch.linspace(0, len(positions) - 1, COMPARED).long())


def _broken_weights(model: PreTrainedModel) -> str:
    """Return a clause that names the first weights that are not finite; empty if all are."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f": {name} holds numbers that are not"
    return ""


def _reopened_logits(folder: Path, texts: Sequence[dict[str, Tensor]], output: Path) -> list[Tensor]:
    """Return the logits that plain transformers computes from a checkpoint in a fresh process.

    Raises:
        LongRopeError: The process was killed, or transformers cannot open the checkpoint.
    """
    inputs = {f"{number}.{name}": tensor for number, text in enumerate(texts) for name, tensor in text.items()}
    command = [*PROGRAM, str(folder.resolve())]
    # the program imports from its working folder before all others; the checkpoint holds no code
    process = subprocess.run(command, input=save(inputs), capture_output=True, check=False, cwd=folder)
    if process.returncode < 0:
        raise LongRopeError(
            f"output = {output}: the process that reopened the checkpoint was ended by signal {-process.returncode}, "
            f"perhaps because memory ran out. Nothing was written. Free memory, or: {REMEDY}"
        )
    if process.returncode > 0:
        lines = process.stderr.decode(errors="replace").strip().splitlines() or ["no reason was given"]
        raise _refused(output, f"does not open in a fresh process: {lines[-1].rstrip('.')}")
    logits = load(process.stdout)
    return [logits[str(number)] for number in range(len(texts))]


def _refused(output: Path, fault: str) -> LongRopeError:
    return LongRopeError(
        f"output = {output}: the checkpoint, reopened in plain transformers, {fault}. Nothing was written. "
        "longrope cannot export this model. Please report it with the model's config.json."
    )
