"""The sizes of a model that its costs depend on, from its config alone, and the FLOPs of a pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from longrope.errors import LongRopeError
from longrope.models.backbone import auto_class
from longrope.models.load import check_dtype


@dataclass(frozen=True)
class Flops:
    """FLOPs of matrix products with weights, and of attention, which run at different speeds."""

    linear: float = 0.0
    attention: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.linear + other.linear, self.attention + other.attention)

    def times(self, linear: float, attention: float | None = None) -> Flops:
        """Return a multiple of these FLOPs, of attention by another number if it is given."""
        return Flops(self.linear * linear, self.attention * (linear if attention is None else attention))

    @property
    def total(self) -> float:
        """Sum of both."""
        return self.linear + self.attention


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that its costs depend on.

    Args:
        parameters: All parameters, tied ones once.
        matmul_parameters: Parameters that multiply a token: active experts only, with the head, without embeddings.
        windows: Largest number of tokens that one token attends to, for each layer; None means all.
        query_features: Features of all query heads together.
        kv_features: Features of keys and values together.
        hidden_size: Features of a token between layers.
        mlp_features: Features of a token within the MLP, in active experts.
        vocabulary: Logits of a token.
        lora_features: Features in and out of all linear layers but the head: the parameters of a LoRA of rank 1.
        dtype: Dtype of the weights.
        device: Device of the model, which decides how much memory a pass takes.
        phase_features: Features of a token's cos and sin.
        tiled: Whether training runs MLPs chunk by chunk (`longrope.longcontext.tiling.tile_mlps`).
    """

    parameters: int
    matmul_parameters: int
    windows: tuple[int | None, ...]
    query_features: int
    kv_features: int
    hidden_size: int
    mlp_features: int
    vocabulary: int
    lora_features: int
    dtype: str
    device: str = "cpu"
    phase_features: int = 0
    tiled: bool = True

    @classmethod
    def of(cls, config: PreTrainedConfig, dtype: str = "auto", device: str = "cpu") -> ModelShape:
        """Count a model's sizes on a model without memory, built from its config; ``auto`` is the checkpoint's dtype.

        Raises:
            LongRopeError: If the dtype is unknown, or the model is not a text-only causal language model.
        """
        check_dtype(dtype)
        try:
            with torch.device("meta"):
                model = auto_class(config).from_config(config)
        except ValueError:
            raise LongRopeError(
                f"model type {config.model_type!r} is not a causal language model. Load one that predicts text."
            ) from None
        text: Any = config.get_text_config()
        head = model.get_output_embeddings()
        layers = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
        head_dim = _head_dim(text)
        kv_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        experts, active_experts = _experts(text)
        return cls(
            parameters=model.num_parameters(),
            matmul_parameters=_matmul_parameters(model, active_experts / experts),
            windows=_windows(text),
            query_features=head_dim * text.num_attention_heads,
            kv_features=2 * head_dim * kv_heads,
            hidden_size=text.hidden_size,
            mlp_features=active_experts * _mlp_features(text)
            + (getattr(text, "shared_expert_intermediate_size", None) or 0),
            vocabulary=len(head.weight),
            lora_features=sum(layer.in_features + layer.out_features for layer in layers),
            dtype=str(config.dtype or "float32").removeprefix("torch.") if dtype == "auto" else dtype,
            device=device,
            phase_features=2 * head_dim,
            tiled=experts == 1,
        )

    @property
    def bytes(self) -> int:
        """Bytes of one weight."""
        return getattr(torch, self.dtype).itemsize

    def trained(self, lora: int) -> int:
        """Return the number of trained parameters: those of a LoRA of that rank, or all for rank 0."""
        return lora * self.lora_features if lora else self.parameters

    def forward(self, length: int) -> Flops:
        """Return the FLOPs of one forward pass over a sequence of ``length`` tokens under causal attention."""
        pairs = sum(_attended_pairs(length, window) for window in self.windows)
        return Flops(2 * self.matmul_parameters * length, 4 * self.query_features * pairs)

    def backward(self, length: int, *, trained: bool, recomputed: bool = True) -> Flops:
        """Return the FLOPs of a forward pass, a second one for what was not kept, and the backward pass.

        With the second pass it is up to 7% too high, since that pass may leave out a layer's last product. A third pass
        over MLPs of long sequences, which run chunk by chunk, is not counted.

        Args:
            length: Tokens of the sequence.
            trained: Whether weights get gradients; else only their inputs do.
            recomputed: Whether there is a second forward pass.
        """
        # attention kernels keep no scores: backwards, five products where forwards there are two (Dao 2023)
        return self.forward(length).times((3 if trained else 2) + recomputed, 3.5 + recomputed)


def _head_dim(text: Any) -> int:
    """Return the dimensions of a head.

    Raises:
        LongRopeError: The layers of the model have heads of several sizes.
    """
    try:
        return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    except Exception as error:  # transformers' config of such a model refuses to name one for all layers
        raise LongRopeError(
            f"model type {text.model_type!r}: head_dim differs by layer. longrope does not support this model type."
        ) from error


def _experts(text: Any) -> tuple[int, int]:
    """Return the number of experts of a layer, and how many of them see a token."""
    experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None) or 1
    return experts, getattr(text, "num_experts_per_tok", None) or 1


def _matmul_parameters(model: Any, active_share: float) -> int:
    """Return the number of parameters that multiply a token; ``active_share`` of the experts' parameters count."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings().weight
    count = float(head.weight.numel())
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and weight is not embeddings and weight is not head.weight:
            count += weight.numel() * (active_share if ".experts." in name else 1)
    return round(count)


def _mlp_features(text: Any) -> int:
    names = ("moe_intermediate_size", "intermediate_size", "ffn_hidden_size")
    return next((size for name in names if (size := getattr(text, name, None))), 4 * text.hidden_size)


def _windows(text: Any) -> tuple[int | None, ...]:
    window, kinds = getattr(text, "sliding_window", None) or None, getattr(text, "layer_types", None)
    if kinds is None:
        return (window,) * text.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _attended_pairs(length: int, window: int | None) -> float:
    """Return the number of pairs of a token and one that it attends to."""
    reach = min(length, window or length)
    return reach * (reach + 1) / 2 + (length - reach) * reach
