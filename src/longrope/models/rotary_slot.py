"""Find the rotary module of a transformers model, and the module that replaces it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longrope.errors import LongRopeError
from longrope.models.adapter import SwitchedAdapter
from longrope.models.backbone import text_model_of
from longrope.models.rotary_embedding import LongRoPE
from longrope.models.rotary_layout import RotaryLayout, layer_type_of
from longrope.models.runnable import check_runnable
from longrope.rope import FULL_NAMES, Rope


@dataclass(frozen=True)
class RotarySite:
    """A site in a model where cos and sin are computed.

    Args:
        parent: Module that holds the rotary module.
        name: Attribute of ``parent`` that is the rotary module.
        module: The rotary module when the site was found.
    """

    parent: nn.Module
    name: str
    module: nn.Module

    @property
    def original(self) -> nn.Module:
        """The model's own module, also while another replaces it."""
        return self.module.original if isinstance(self.module, RescaledRotary) else self.module


@dataclass(frozen=True)
class RotarySlot:
    """The sites in a model where cos and sin of the full-attention layers are computed.

    Most models have one site. Moshi has one for each layer, Granite SWA one for each base, and DeepSeek-V4 one for
    each compressor.

    Args:
        sites: Sites with the frequencies of ``rope``.
        rope: Geometry of the model.
    """

    sites: tuple[RotarySite, ...]
    rope: Rope

    @property
    def module(self) -> nn.Module:
        """The rotary module of the first site when it was found."""
        return self.sites[0].module

    @property
    def originals(self) -> list[nn.Module]:
        """The model's own rotary modules."""
        return [site.original for site in self.sites]

    def rescale(self, embedding: nn.Module | None, adapter: SwitchedAdapter | None = None) -> None:
        """Compute cos and sin by an embedding at every site; see `RescaledRotary`."""
        self._install([RescaledRotary(self.rope, original, embedding, adapter) for original in self.originals])

    def use_originals(self) -> None:
        """Put the model's own rotary modules at their sites."""
        self._install(self.originals)

    def forget_lengths(self) -> None:
        """Reset the frequencies that a dynamic scaling has grown, by one token at the first position."""
        for original in self.originals:
            RotaryLayout.of(original, self.rope.dim // 2)

    def restore(self) -> None:
        """Put back the rotary modules that the sites had when they were found."""
        self._install([site.module for site in self.sites])

    def _install(self, modules: Sequence[nn.Module]) -> None:
        for site, module in zip(self.sites, modules, strict=True):
            setattr(site.parent, site.name, module)


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
        self.config = getattr(original, "config", None)  # likewise
        self.mrope_section = getattr(original, "mrope_section", None)  # likewise, HunYuan-VL
        self.train(original.training)
        self.register_state_dict_post_hook(_drop_embedding_state)
        self.register_load_state_dict_pre_hook(_add_embedding_state)

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        """Return cos and sin in the form of the original, ``(batch, sequence, dim)``.

        Args:
            x: Tensor of the model's dtype and device, ``(batch, sequence, …)``.
            position_ids: Positions, ``(batch, sequence)``; ``(axes, batch, sequence)`` in models that read images.
            layer_type: Type of the layers, in models with a rope for each.

        Raises:
            LongRopeError: Positions of a text with images lie beyond the length that the factors are for.
        """
        if self.embedding is None or layer_type not in (None, *FULL_NAMES):
            # beside factors without the hook that turns the adapter off
            original = self.original if self.embedding is None else self.original.forward
            return original(x, position_ids, *([layer_type] if layer_type else []))
        like = x[..., :1].float() if self.layout.keeps_float32 else x
        one_axis = position_ids.dim() == 2
        axes = position_ids[None] if one_axis else position_ids[-self.layout.axes :]  # one before is for the mask
        if len(axes) > 1:
            if (axes == axes[:1]).all():  # text, without an image
                axes = axes[:1]
            else:
                _check_reach(axes, self.embedding)
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
    """Return the sites of a model's rotary modules that have the frequencies of its full-attention layers.

    Raises:
        LongRopeError: The model cannot run by itself, it has no rotary module, or no module's frequencies are those
            that its config describes.
    """
    check_runnable(model)
    rope, model_type = Rope.of(model), model.config.model_type
    sites = [
        RotarySite(parent, name, child)
        for parent in text_model_of(model).modules()
        if not isinstance(parent, RescaledRotary)
        for name, child in parent.named_children()
        if isinstance(child, RescaledRotary) or _inv_freq(child) is not None
    ]
    if not sites:
        raise LongRopeError(f"model type {model_type!r} has no rotary module that longrope can replace: not supported")
    with_rope = tuple(site for site in sites if _has_frequencies(site.original, rope))
    if not with_rope:
        raise LongRopeError(
            f"model type {model_type!r}: its frequencies are not those of {rope}, which its config describes. "
            "longrope does not support this model type."
        )
    return RotarySlot(with_rope, rope)


def _has_frequencies(original: nn.Module, rope: Rope) -> bool:
    """Return whether a model's own module computes with a rope; a longrope or dynamic one changes with the length."""
    layer_type = layer_type_of(original)
    prefix = f"{layer_type}_" if layer_type else ""
    inv_freq = getattr(original, f"{prefix}original_inv_freq", _inv_freq(original))
    first = replace(rope, factors=rope.short_factors or rope.factors, short_factors=(), short_length=0)
    expected = torch.from_numpy(first.inv_freq).float()
    if inv_freq is None or inv_freq.shape != expected.shape:
        return False
    step = 6e-8 if inv_freq.dtype == torch.float16 else 1e-8  # of the smallest numbers in float16
    return torch.allclose(inv_freq.float().cpu(), expected, rtol=1e-2, atol=step)


def _check_reach(axes: Tensor, embedding: nn.Module) -> None:
    """Refuse positions of a text with images beyond the length of the factors, which no pass has tried.

    Raises:
        LongRopeError: A position lies beyond it.
    """
    length, last = getattr(embedding, "max_position", None), int(axes.max())
    if length is not None and last >= length:
        raise LongRopeError(
            f"position_ids = {last:,}: this text with images goes beyond the {length:,} tokens that the factors are "
            "for. Use fewer or smaller images, or factors for a greater length."
        )


def _inv_freq(module: nn.Module) -> Tensor | None:
    buffers = dict(module.named_buffers(recurse=False))
    return buffers.get("inv_freq", buffers.get(f"{layer_type_of(module)}_inv_freq"))


def _drop_embedding_state(module: nn.Module, state_dict: dict[str, Any], prefix: str, _metadata: object) -> None:
    for key in [key for key in state_dict if key.startswith(f"{prefix}embedding.")]:
        del state_dict[key]


def _add_embedding_state(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Add the embedding's present state, which `_drop_embedding_state` kept out of the checkpoint."""
    if isinstance(module, RescaledRotary) and module.embedding is not None:
        state_dict.update(module.embedding.state_dict(prefix=f"{prefix}embedding."))
