"""What the costs of a model depend on, from its config alone, and the FLOPs of a pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from longrope.errors import LongRopeError
from longrope.models.load import check_dtype


@dataclass(frozen=True)
class Flops:
    """FLOPs of matrix products with weights, and of attention: they run at different rates."""

    linear: float = 0.0
    attention: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.linear + other.linear, self.attention + other.attention)

    def times(self, linear: float, attention: float | None = None) -> Flops:
        """So many times as much, of attention another number if given."""
        return Flops(self.linear * linear, self.attention * (linear if attention is None else attention))

    @property
    def flops(self) -> float:
        """Both."""
        return self.linear + self.attention


@dataclass(frozen=True)
class ModelShape:
    """What the costs of a model depend on.

    Args:
        parameters: all of them, tied ones once.
        products: parameters that multiply a token: active experts only, the head, but no embeddings.
        windows: of each layer, the most tokens that one attends to; None: all.
        queries: features of all query heads together.
        keys: features of keys and values together.
        hidden: features of a token between layers.
        wide: features of a token within the MLP, in active experts.
        vocabulary: logits of a token.
        adapted: features in and out of all linear layers but the head, what LoRA of rank 1 has parameters for.
        dtype: of the checkpoint.
        device: where it runs, for the memory that it takes.
        phases: features of a token's cos and sin.
        tiled: whether training runs MLPs in pieces (`longrope.longcontext.tiling.tile_mlps`).
    """

    parameters: int
    products: int
    windows: tuple[int | None, ...]
    queries: int
    keys: int
    hidden: int
    wide: int
    vocabulary: int
    adapted: int
    dtype: str
    device: str = "cpu"
    phases: int = 0
    tiled: bool = True

    @classmethod
    def of(cls, config: PreTrainedConfig, dtype: str = "auto", device: str = "cpu") -> ModelShape:
        """Counted on a model without memory, built from its config; ``auto`` is the checkpoint's dtype.

        Raises:
            LongRopeError: if the dtype is unknown, or the model is no text-only causal language model.
        """
        check_dtype(dtype)
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
        except ValueError:
            raise LongRopeError(
                f"model type {config.model_type!r} is no causal language model that reads text alone: not supported; "
                "load its text-only checkpoint"
            ) from None
        text: Any = config.get_text_config()
        head, embeddings = model.get_output_embeddings(), model.get_input_embeddings().weight
        experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None) or 1
        active = getattr(text, "num_experts_per_tok", None) or 1
        products = float(head.weight.numel())
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and weight is not embeddings and weight is not head.weight:
                products += weight.numel() * (active / experts if ".experts." in name else 1)
        layers = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
        one = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        groups = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        wide = active * _wide(text)
        return cls(
            parameters=model.num_parameters(),
            products=round(products),
            windows=_windows(text),
            queries=one * text.num_attention_heads,
            keys=2 * one * groups,
            hidden=text.hidden_size,
            wide=wide + (getattr(text, "shared_expert_intermediate_size", None) or 0),
            vocabulary=len(head.weight),
            adapted=sum(layer.in_features + layer.out_features for layer in layers),
            dtype=str(config.dtype or "float32").removeprefix("torch.") if dtype == "auto" else dtype,
            device=device,
            phases=2 * one,
            tiled=experts == 1,
        )

    @property
    def bytes(self) -> int:
        """Of a parameter in the checkpoint."""
        return getattr(torch, self.dtype).itemsize

    def forward(self, length: int) -> Flops:
        """One forward pass over a sequence of so many tokens; attention to the token itself and those before it."""
        seen = sum(_seen(length, window) for window in self.windows)
        return Flops(2 * self.products * length, 4 * self.queries * seen)

    def backward(self, length: int, *, trained: bool) -> Flops:
        """Forward, forward again for what was not kept, and backward.

        Up to 7% too much: the second time, the last product of a layer may be left out. Of sequences long enough for
        MLPs in pieces, what these cost a third time is not counted.

        Args:
            length: in tokens.
            trained: whether weights get gradients; else only what they multiply does.
        """
        # attention kernels keep no scores: backwards, five products where forwards there are two (Dao 2023)
        return self.forward(length).times(4 if trained else 3, 4.5)


def _wide(text: Any) -> int:
    names = ("moe_intermediate_size", "intermediate_size", "ffn_hidden_size")
    return next((size for name in names if (size := getattr(text, name, None))), 4 * text.hidden_size)


def _windows(text: Any) -> tuple[int | None, ...]:
    window, kinds = getattr(text, "sliding_window", None) or None, getattr(text, "layer_types", None)
    if kinds is None:
        return (window,) * text.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _seen(length: int, window: int | None) -> float:
    """Pairs of a token and one that it attends to."""
    reach = min(length, window or length)
    return reach * (reach + 1) / 2 + (length - reach) * reach
