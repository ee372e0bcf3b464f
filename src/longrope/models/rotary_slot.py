"""Find the rotary module of a transformers model, and the module that replaces it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longrope.errors import LongRopeError
from longrope.models.adapter import SwitchedAdapter
from longrope.models.backbone import text_part
from longrope.models.rotary_embedding import LongRoPE
from longrope.models.rotary_layout import AXES, RotaryLayout
from longrope.rope import FULL, Rope


@dataclass(frozen=True)
class RotarySlot:
    """The place in a model where cos and sin are computed.

    Args:
        parent: Module that holds the rotary module.
        name: Attribute of ``parent`` that is the rotary module.
        module: The rotary module at present.
        rope: Geometry of the model.
    """

    parent: nn.Module
    name: str
    module: nn.Module
    rope: Rope

    @property
    def original(self) -> nn.Module:
        """The model's own module, also while another replaces it."""
        return self.module.original if isinstance(self.module, RescaledRotary) else self.module

    def install(self, module: nn.Module) -> None:
        """Replace the rotary module."""
        setattr(self.parent, self.name, module)


class RescaledRotary(nn.Module):
    """Replacement for a model's rotary module; layer types other than full attention still use the original.

    The factors stay out of the model's state dict, so checkpoints keep the keys that transformers expects.

    Args:
        rope: Geometry of the model without the factors.
        original: The model's own rotary module.
        embedding: Module that computes cos and sin instead; None leaves the model as it was.
        adapter: Adapter to turn on for rows whose factors are not all 1.
    """

    def __init__(
        self,
        rope: Rope,
        original: nn.Module,
        embedding: nn.Module | None,
        adapter: SwitchedAdapter | None = None,
    ) -> None:
        super().__init__()
        self.rope, self.original, self.embedding, self.adapter = rope, original, embedding, adapter
        self.plain_fields: Mapping[str, Any] = {}  # of the model's config, as they were before longrope.apply
        self.layout = RotaryLayout.of(original, rope.dim // 2)
        self.layer_types = getattr(original, "layer_types", None)  # which some models read there
        self.train(original.training)
        self.register_state_dict_post_hook(_drop_embedding_state)
        self.register_load_state_dict_pre_hook(_add_embedding_state)

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        """Return cos and sin in the form of the original, ``(batch, sequence, dim)``.

        Args:
            x: Tensor of the model's dtype and device, ``(batch, sequence, …)``.
            position_ids: Positions, ``(batch, sequence)``; ``(axes, batch, sequence)`` in models that read images.
            layer_type: Type of the layers, in models with a rope for each.
        """
        if self.embedding is None or layer_type not in (None, FULL):
            # beside factors without the hook that turns the adapter off
            original = self.original if self.embedding is None else self.original.forward
            return original(x, position_ids, *([layer_type] if layer_type else []))
        like = x[..., :1].float() if self.layout.keeps_float32 else x
        axes = position_ids[None] if position_ids.dim() == 2 else position_ids[-AXES:]  # one before is for the mask
        if len(axes) > 1 and (axes == axes[:1]).all():  # text, without an image
            axes = axes[:1]
        flat = axes.transpose(0, 1).flatten(1)
        by_axis = (
            each.unflatten(1, (len(axes), -1)).transpose(0, 1) for each in self._rotate(self.embedding, like, flat)
        )
        cos, sin = (self.layout.merge_axes(each) for each in by_axis)
        return self.layout.arrange(cos, sin)

    def _rotate(self, embedding: nn.Module, like: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        if self.adapter is not None:
            rescales = embedding.rescales(position_ids) if isinstance(embedding, LongRoPE) else True
            self.adapter.use(rescales)
        return embedding(like, position_ids)


def find_rotary_slot(model: PreTrainedModel) -> RotarySlot:
    """Return the place of a model's only rotary module.

    Raises:
        LongRopeError: The model has no rotary module or several, or its frequencies are not those that its config
            describes.
    """
    rope, model_type = Rope.of(model), model.config.model_type
    slots = [
        (parent, name, child)
        for parent in text_part(model).modules()
        if not isinstance(parent, RescaledRotary)
        for name, child in parent.named_children()
        if isinstance(child, RescaledRotary) or _inv_freq(child) is not None
    ]
    if len(slots) != 1:
        raise LongRopeError(f"model type {model_type!r} has {len(slots)} rotary modules instead of one: not supported")
    rotary = RotarySlot(*slots[0], rope=rope)
    if not _has_frequencies(rotary.original, rope):
        raise LongRopeError(
            f"model type {model_type!r}: its frequencies are not those of {rope}, which its config describes. "
            "longrope does not support this model type."
        )
    return rotary


def _has_frequencies(original: nn.Module, rope: Rope) -> bool:
    """Return whether a model's own module computes with a rope; a longrope or dynamic one changes with the length."""
    prefix = f"{FULL}_" if hasattr(original, f"{FULL}_inv_freq") else ""
    inv_freq = getattr(original, f"{prefix}original_inv_freq", _inv_freq(original))
    first = replace(rope, factors=rope.short_factors or rope.factors, short_factors=(), short_length=0)
    expected = torch.from_numpy(first.inv_freq).float()
    if inv_freq is None or inv_freq.shape != expected.shape:
        return False
    return torch.allclose(inv_freq.float().cpu(), expected, rtol=1e-2)


def _inv_freq(module: nn.Module) -> Tensor | None:
    buffers = dict(module.named_buffers(recurse=False))
    return buffers.get("inv_freq", buffers.get(f"{FULL}_inv_freq"))


def _drop_embedding_state(module: nn.Module, state_dict: dict[str, Any], prefix: str, _metadata: object) -> None:
    for key in [key for key in state_dict if key.startswith(f"{prefix}embedding.")]:
        del state_dict[key]


def _add_embedding_state(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Add the embedding's present state, which `_drop_embedding_state` kept out of the checkpoint."""
    if isinstance(module, RescaledRotary) and module.embedding is not None:
        state_dict.update(module.embedding.state_dict(prefix=f"{prefix}embedding."))
