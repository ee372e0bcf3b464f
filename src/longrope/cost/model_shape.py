"""The sizes of a model that its costs depend on, from its config alone, and the FLOPs of a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from longrope.cost.attention_sizes import layer_sizes, windows
from longrope.errors import LongRopeError
from longrope.models.backbone import auto_class, backbone_of, text_model_of
from longrope.models.load import check_dtype
from longrope.models.quantized import QuantizedBits, bits_of_weights

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
ACTIVE_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k")


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
        weight_bytes: Bytes of all weights on the device, quantised or not.
        matmul_parameters: Parameters that multiply a token of text: active experts only, with the head, without
            embeddings.
        windows: Largest number of tokens that one token attends to, for each layer; None means all, 0 that the layer
            has no attention.
        query_features: Mean of the features of a token's queries and of its attention's output, in the largest layer.
        kv_features: Features of keys and values together, as attention reads them, in the largest layer.
        cached_features: Features of keys and values together that a cache holds, for each layer.
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
    weight_bytes: int
    matmul_parameters: int
    windows: tuple[int | None, ...]
    query_features: int
    kv_features: int
    cached_features: tuple[int, ...]
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
            LongRopeError: If the dtype is unknown, or the model is not a causal language model.
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
        layers = [module for module in backbone_of(model).modules() if isinstance(module, nn.Linear)]
        sizes = layer_sizes(text, keeps_latents=any(hasattr(module, "expand_kv") for module in model.modules()))
        experts, active_experts = _experts(text)
        name = str(config.dtype or "float32").removeprefix("torch.") if dtype == "auto" else dtype
        return cls(
            parameters=model.num_parameters(),
            weight_bytes=_weight_bytes(model, getattr(torch, name).itemsize, bits_of_weights(config, device)),
            matmul_parameters=_matmul_parameters(model, active_experts / experts),
            windows=windows(text),
            query_features=max(size.query_features for size in sizes),
            kv_features=max(size.kv_features for size in sizes),
            cached_features=tuple(size.cached_features for size in sizes),
            hidden_size=text.hidden_size,
            mlp_features=active_experts * _mlp_features(text)
            + (getattr(text, "shared_expert_intermediate_size", None) or 0),
            vocabulary=len(head.weight),
            lora_features=sum(layer.in_features + layer.out_features for layer in layers),
            dtype=name,
            device=device,
            phase_features=2 * max(size.head_dim for size in sizes),
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

    def head(self, length: int) -> float:
        """Return the FLOPs of the head in a forward pass, which are among those of `forward`."""
        return 2 * self.vocabulary * self.hidden_size * length

    def backward(self, length: int, *, trained: bool, recomputed: bool = True) -> Flops:
        """Return the FLOPs of a forward pass, a second one for layers that were not kept, and the backward pass.

        With the second pass it is up to 7% too high, since that pass may leave out a layer's last product. A third pass
        over MLPs of long sequences, which run chunk by chunk, is not counted.

        Args:
            length: Tokens of the sequence.
            trained: Whether weights get gradients; else only their inputs do.
            recomputed: Whether there is a second forward pass, of all layers without the head.
        """
        forward = self.forward(length)
        # attention kernels keep no scores: backwards, five products where forwards there are two (Dao 2023)
        kept_and_backward = forward.times(3 if trained else 2, 3.5)
        return kept_and_backward + Flops(forward.linear - self.head(length), forward.attention).times(recomputed)


def _experts(text: Any) -> tuple[int, int]:
    """Return the number of experts of a layer, and how many of them see a token."""
    return _first(text, EXPERTS) or 1, _first(text, ACTIVE_EXPERTS) or 1


def _first(text: Any, names: tuple[str, ...]) -> Any:
    """Return the first field of a config that is set, the largest value if it has one a layer; None without one."""
    field = next((value for name in names if (value := getattr(text, name, None))), None)
    return max(field) if isinstance(field, Sequence) else field


def _matmul_parameters(model: Any, active_share: float) -> int:
    """Return the number of parameters that multiply a token; ``active_share`` of the experts' parameters count."""
    head, text_model = model.get_output_embeddings().weight, text_model_of(model)
    embeddings = [module.weight for module in text_model.modules() if isinstance(module, nn.Embedding)]
    others = {id(weight) for weight in [*embeddings, head]}
    count = float(head.numel())
    for name, weight in text_model.named_parameters():
        if weight.dim() > 1 and id(weight) not in others:
            count += weight.numel() * (active_share if ".experts." in name else 1)
    return round(count)


def _weight_bytes(model: Any, size: int, bits: QuantizedBits) -> int:
    """Return the bytes of a model's weights of ``size`` bytes each, where some are quantised."""
    text_model = text_model_of(model)
    linear = [module.weight for module in backbone_of(model).modules() if isinstance(module, nn.Linear)]
    quantized = sum(weight.numel() for weight in linear) if bits.of_layers else 0
    saved = quantized * (size - (bits.of_layers or 0) / 8)
    if bits.of_experts:
        experts = [weight for name, weight in text_model.named_parameters() if ".experts." in name and weight.dim() > 2]
        saved += sum(weight.numel() for weight in experts) * (size - bits.of_experts / 8)
    return round(model.num_parameters() * size - saved)


def _mlp_features(text: Any) -> int:
    return _first(text, ("moe_intermediate_size", "intermediate_size", "ffn_hidden_size")) or 4 * text.hidden_size


def _attended_pairs(length: int, window: int | None) -> float:
    """Return the number of pairs of a token and one that it attends to."""
    reach = length if window is None else min(length, window)
    return reach * (reach + 1) / 2 + (length - reach) * reach
