"""The form in which a model's rotary module returns cos and sin, found by asking it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longrope.errors import LongRopeError
from longrope.rope import FULL, full_attention_name

AXES = 3  # of the positions of models that read images: time, height, width; HunYuan-VL may have a fourth


@dataclass(frozen=True)
class RotaryLayout:
    """The form of a rotary module's output.

    Args:
        is_complex: Whether the module returns cos + i·sin, with one number for each pair.
        interleaved: Whether the two entries of a pair are neighbours.
        keeps_float32: Whether cos and sin stay float32 in a bfloat16 model.
        repeats: Whether cos and sin hold each pair's value twice; gpt-oss has one for each pair.
        axes: Number of positions of a token in an image.
        entry_axes: Axis of the positions that each entry of cos follows, ``(dim,)``, first entries of all pairs first;
            None in models where a token has one position. In HunYuan-VL the two entries of a pair follow two axes.
        has_axes: Whether the output of such a model has a first dimension for the axes.
    """

    is_complex: bool = False
    interleaved: bool = False
    keeps_float32: bool = False
    repeats: bool = True
    axes: int = AXES
    entry_axes: Tensor | None = None
    has_axes: bool = False

    @classmethod
    @torch.no_grad()
    def of(cls, original: nn.Module, pairs: int) -> RotaryLayout:
        """Return the layout of a model's own rotary module.

        Args:
            original: The rotary module.
            pairs: Number of rotated pairs of the model.
        """
        multimodal = hasattr(original, "mrope_section")
        axes = _axes_of(original)
        ones = torch.ones(axes, 1, 1) if multimodal else torch.ones(1, 1)
        output = _run(original, ones)
        if not isinstance(output, tuple):
            if not (isinstance(output, Tensor) and output.is_complex()):
                raise LongRopeError(
                    f"{type(original).__name__} returns neither cos and sin nor complex numbers. "
                    "longrope does not support this model type."
                )
            return cls(is_complex=True)
        cos = output[0]
        first, second = cos.chunk(2, dim=-1)
        repeats = cos.shape[-1] != pairs
        layout = {
            "interleaved": repeats and not torch.equal(first, second),
            "keeps_float32": cos.dtype == torch.float32,
            "repeats": repeats,
        }
        if not multimodal:
            return cls(**layout)
        if cos.dim() > 3:
            return cls(**layout, axes=axes, has_axes=True)
        moved = torch.stack(
            [_run(original, ones * (torch.arange(axes) == axis)[:, None, None])[1] for axis in range(axes)]
        )
        entries = moved[:, 0, 0, ::2] if layout["interleaved"] else moved[:, 0, 0]
        entry_axes = entries.abs().argmax(dim=0)
        return cls(**layout, axes=axes, entry_axes=entry_axes.repeat(2 * pairs // len(entry_axes)))

    def arrange(self, cos: Tensor, sin: Tensor) -> Any:
        """Return cos and sin, ``(..., dim)`` with each half the same, in the form of the rotary module."""
        if self.is_complex:
            return torch.complex(*(values.chunk(2, dim=-1)[0].float() for values in (cos, sin)))
        if not self.repeats:
            return tuple(values.chunk(2, dim=-1)[0] for values in (cos, sin))
        if self.interleaved:
            return tuple(values.chunk(2, dim=-1)[0].repeat_interleave(2, dim=-1) for values in (cos, sin))
        return cos, sin

    def merge_axes(self, values: Tensor) -> Tensor:
        """Return the cos or sin of each axis as the model's attention reads them.

        Args:
            values: Cos or sin, ``(axes, batch, sequence, dim)``; one axis where all have the same positions.
        """
        if self.has_axes:
            return values.expand(self.axes, *values.shape[1:])
        if len(values) == 1 or self.entry_axes is None:
            return values[0]
        axes = self.entry_axes.to(values.device)
        return values.gather(0, axes.expand(1, *values.shape[1:]))[0]


def layer_type_of(original: nn.Module) -> str | None:
    """Return the name under which a rotary module holds the full-attention layers' frequencies; None if it has one."""
    suffix = "_inv_freq"
    buffers = [name for name, _ in original.named_buffers(recurse=False)]
    return full_attention_name(name.removesuffix(suffix) for name in buffers if name.endswith(suffix))


def _axes_of(original: nn.Module) -> int:
    """Return the number of positions of a token in an image, which HunYuan-VL has for each of its sections."""
    sections = getattr(original, "mrope_section", None)
    return max(AXES, len(sections)) if isinstance(sections, Sequence) else AXES


def _run(original: nn.Module, positions: Tensor) -> Any:
    """Return the output of a rotary module for a bfloat16 model, for one token."""
    device = next((buffer.device for buffer in original.buffers()), None)
    layer_type = [layer_type_of(original) or FULL] if hasattr(original, "layer_types") else []
    x = torch.zeros(1, 1, 1, dtype=torch.bfloat16, device=device)
    return original(x, positions.long().to(device), *layer_type)
