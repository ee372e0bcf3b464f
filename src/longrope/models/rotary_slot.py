"""Find the rotary module of a transformers model and the module that stands in for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longrope.errors import LongRopeError
from longrope.rope import FULL, Rope, full_attention_fields


@dataclass(frozen=True)
class RotarySlot:
    """Where a model computes its cos and sin: ``parent.name`` is ``module``, ``original`` is transformers' own."""

    parent: nn.Module
    name: str
    module: nn.Module
    rope: Rope

    @property
    def original(self) -> nn.Module:
        """The model's own module, also while another stands in for it."""
        return self.module.original if isinstance(self.module, RescaledRotary) else self.module

    def install(self, module: nn.Module) -> None:
        """Let another module compute cos and sin."""
        setattr(self.parent, self.name, module)


class RescaledRotary(nn.Module):
    """Replacement for a model's rotary module; layer types other than full attention still use the original.

    The factors stay out of the model's state dict, so checkpoints keep the keys that transformers expects.

    Args:
        original: The model's own rotary module.
        embedding: Module that computes cos and sin instead; None leaves the model as it was.
    """

    def __init__(self, original: nn.Module, embedding: nn.Module | None) -> None:
        super().__init__()
        self.original, self.embedding = original, embedding
        self.plain_fields: Mapping[str, Any] = {}  # of the model's config, as they were before longrope.apply
        self.interleaved, self.keeps_float32 = _layout(original)
        self.train(original.training)
        self.register_state_dict_post_hook(_drop_embedding_state)
        self.register_load_state_dict_pre_hook(_add_embedding_state)

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, Tensor]:
        """As the original's: cos and sin, ``(batch, sequence, dim)``."""
        if self.embedding is None or layer_type not in (None, FULL):
            return self.original(x, position_ids, *([layer_type] if layer_type else []))
        like = x[..., :1].float() if self.keeps_float32 else x
        cos, sin = self.embedding(like, position_ids)
        if self.interleaved:
            cos, sin = (half.chunk(2, dim=-1)[0].repeat_interleave(2, dim=-1) for half in (cos, sin))
        return cos, sin


def find_rotary_slot(model: PreTrainedModel) -> RotarySlot:
    """The one rotary module of a model.

    Raises:
        LongRopeError: if there is none, if there are several, if it is per layer, or if its frequencies are not
            base^(-2i/dim): the checkpoint then carries a scaling already.
    """
    rope = Rope.of(model)
    if model.config.get_text_config() is not model.config:
        kind = model.config.model_type
        raise LongRopeError(f"model type {kind!r} reads more than text: not supported; load its text-only checkpoint")
    found = [
        (parent, name, child)
        for parent in model.modules()
        if not isinstance(parent, RescaledRotary)
        for name, child in parent.named_children()
        if isinstance(child, RescaledRotary) or _inv_freq(child) is not None
    ]
    if len(found) != 1:
        kind = model.config.model_type
        raise LongRopeError(f"model type {kind!r} has {len(found)} rotary modules where one is expected: not supported")
    rotary = RotarySlot(*found[0], rope=rope)
    own = _inv_freq(rotary.original)
    parameters = full_attention_fields(model.config.get_text_config().rope_parameters)
    expected = torch.from_numpy(rope.inv_freq).float()
    plain = parameters.get("rope_type", "default") == "default"
    plain = plain or isinstance(rotary.module, RescaledRotary)  # longrope.apply wrote this scaling into the config
    if own is None or own.shape != expected.shape or not torch.allclose(own.float().cpu(), expected, rtol=1e-2):
        plain = False
    if not plain:
        kind = parameters.get("rope_type")
        raise LongRopeError(
            f"model type {model.config.model_type!r} already carries a rope scaling ({kind}); "
            "factors are relative to plain RoPE, so load the checkpoint that it was made from "
            "(to evaluate this one as it is: longrope eval --schemes none)"
        )
    return rotary


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
def _layout(original: nn.Module) -> tuple[bool, bool]:
    """Whether the two entries of a pair lie side by side, and whether cos and sin stay float32 in a bf16 model."""
    inv_freq = _inv_freq(original)
    device = None if inv_freq is None else inv_freq.device
    x = torch.zeros(1, 2, 1, dtype=torch.bfloat16, device=device)
    layer_type = [FULL] if hasattr(original, "layer_types") else []
    cos, _ = original(x, torch.arange(2, device=device)[None], *layer_type)
    first, second = cos.chunk(2, dim=-1)
    return not torch.equal(first, second), cos.dtype == torch.float32
