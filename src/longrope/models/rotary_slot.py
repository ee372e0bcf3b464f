"""Find the rotary module of a transformers model, and the module that replaces it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longrope.errors import LongRopeError
from longrope.formats.own_rope import already_scaled
from longrope.models.adapter import SwitchedAdapter
from longrope.models.rotary_embedding import LongRoPE
from longrope.rope import FULL, Rope, full_attention_fields


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
        original: The model's own rotary module.
        embedding: Module that computes cos and sin instead; None leaves the model as it was.
        adapter: Adapter to turn on for rows whose factors are not all 1.
    """

    def __init__(
        self, original: nn.Module, embedding: nn.Module | None, adapter: SwitchedAdapter | None = None
    ) -> None:
        super().__init__()
        self.original, self.embedding, self.adapter = original, embedding, adapter
        self.plain_fields: Mapping[str, Any] = {}  # of the model's config, as they were before longrope.apply
        self.interleaved, self.keeps_float32 = _layout(original)
        self.repeats = _repeats(original)
        self.train(original.training)
        self.register_state_dict_post_hook(_drop_embedding_state)
        self.register_load_state_dict_pre_hook(_add_embedding_state)

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, Tensor]:
        """Return cos and sin as the original does, ``(batch, sequence, dim)``."""
        if self.embedding is None or layer_type not in (None, FULL):
            # beside factors without the hook that turns the adapter off
            original = self.original if self.embedding is None else self.original.forward
            return original(x, position_ids, *([layer_type] if layer_type else []))
        like = x[..., :1].float() if self.keeps_float32 else x
        if self.adapter is not None:
            rescales = self.embedding.rescales(position_ids) if isinstance(self.embedding, LongRoPE) else True
            self.adapter.use(rescales)
        cos, sin = self.embedding(like, position_ids)
        if not self.repeats:
            cos, sin = (values.chunk(2, dim=-1)[0] for values in (cos, sin))
        elif self.interleaved:
            cos, sin = (half.chunk(2, dim=-1)[0].repeat_interleave(2, dim=-1) for half in (cos, sin))
        return cos, sin


def find_rotary_slot(model: PreTrainedModel) -> RotarySlot:
    """Return the place of a model's only rotary module.

    Raises:
        LongRopeError: The model has no rotary module or several, or its frequencies are not base^(-2i/dim) because the
            checkpoint carries a scaling already.
    """
    rope, model_type = Rope.of(model), model.config.model_type
    if model.config.get_text_config() is not model.config:
        raise LongRopeError(
            f"model type {model_type!r} reads more than text: not supported. Load its text-only checkpoint."
        )
    slots = [
        (parent, name, child)
        for parent in model.modules()
        if not isinstance(parent, RescaledRotary)
        for name, child in parent.named_children()
        if isinstance(child, RescaledRotary) or _inv_freq(child) is not None
    ]
    if len(slots) != 1:
        raise LongRopeError(f"model type {model_type!r} has {len(slots)} rotary modules instead of one: not supported")
    rotary = RotarySlot(*slots[0], rope=rope)
    rope_type = full_attention_fields(model.config.get_text_config().rope_parameters).get("rope_type", "default")
    applied = isinstance(rotary.module, RescaledRotary)  # longrope.apply wrote this scaling into the config
    if (rope_type != "default" and not applied) or not _has_plain_frequencies(rotary.original, rope):
        raise already_scaled(model_type, rope_type)
    return rotary


def _has_plain_frequencies(original: nn.Module, rope: Rope) -> bool:
    inv_freq, expected = _inv_freq(original), torch.from_numpy(rope.inv_freq).float()
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


@torch.no_grad()
def _repeats(original: nn.Module) -> bool:
    """Return whether cos and sin hold each pair's value twice; gpt-oss has one for each pair."""
    inv_freq = _inv_freq(original)
    if inv_freq is None:
        return True
    layer_type = [FULL] if hasattr(original, "layer_types") else []
    positions = torch.arange(2, device=inv_freq.device)[None]
    cos, _ = original(torch.zeros(1, 2, 1, device=inv_freq.device), positions, *layer_type)
    return cos.shape[-1] != inv_freq.numel()


@torch.no_grad()
def _layout(original: nn.Module) -> tuple[bool, bool]:
    """Return whether the two entries of a pair are neighbours, and whether cos and sin stay float32 in a bf16 model."""
    inv_freq = _inv_freq(original)
    device = None if inv_freq is None else inv_freq.device
    x = torch.zeros(1, 2, 1, dtype=torch.bfloat16, device=device)
    layer_type = [FULL] if hasattr(original, "layer_types") else []
    embeddings = original(x, torch.arange(2, device=device)[None], *layer_type)
    if not isinstance(embeddings, tuple):
        raise LongRopeError(
            f"{type(original).__name__} returns complex numbers instead of cos and sin. "
            "longrope does not support this model type."
        )
    cos, _ = embeddings
    first, second = cos.chunk(2, dim=-1)
    return not torch.equal(first, second), cos.dtype == torch.float32
