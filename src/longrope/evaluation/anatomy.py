"""What one pass through a model costs: FLOPs and memory, from its config alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from longrope.errors import LongRopeError
from longrope.evaluation.loss import LOGITS_AT_ONCE, LOGITS_IN_CACHE, logits_on
from longrope.models.load import check_dtype
from longrope.models.offload import room_for_kept
from longrope.models.tiled import LONG, piece_on

ADAM = 16  # bytes a trained parameter: float32 weight, gradient, first and second moment
# Features per token that live at once, found on tiny and SmolLM2. In a pass on pieces of the sequence, of a piece:
# of the MLP's width, of keys and values, of the hidden size. Of the whole length, beside the hidden states (with a
# gradient: beside every layer's): of the hidden size, of keys and values.
FORWARD_PIECE, FORWARD_WHOLE = (3.0, 0.0, 6.0), (0.0, 1.0)
GRADIENT_PIECE, GRADIENT_WHOLE = (6.0, 1.0, 10.5), (4.0, 5.0)
# In training, of a layer computed anew: of the MLP's width, of keys and values; in float32: hidden.
TRAINED = (6.0, 1.0, 10.5)


@dataclass(frozen=True)
class Work:
    """FLOPs of matrix products with weights, and of attention: they run at different rates."""

    linear: float = 0.0
    attention: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.linear + other.linear, self.attention + other.attention)

    def times(self, linear: float, attention: float | None = None) -> Work:
        """So many times as much, of attention another number if given."""
        return Work(self.linear * linear, self.attention * (linear if attention is None else attention))

    @property
    def flops(self) -> float:
        """Both."""
        return self.linear + self.attention


@dataclass(frozen=True)
class Anatomy:
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
        tiled: whether training runs MLPs in pieces (`longrope.models.tiled.tile_mlps`).
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
    def of(cls, config: PreTrainedConfig, dtype: str = "auto", device: str = "cpu") -> Anatomy:
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
    def kind(self) -> str:
        """Of the device."""
        return torch.device(self.device).type

    @property
    def bytes(self) -> int:
        """Of a parameter in the checkpoint."""
        return getattr(torch, self.dtype).itemsize

    def forward(self, length: int) -> Work:
        """One forward pass over a sequence of so many tokens; attention to the token itself and those before it."""
        seen = sum(_seen(length, window) for window in self.windows)
        return Work(2 * self.products * length, 4 * self.queries * seen)

    def backward(self, length: int, *, trained: bool) -> Work:
        """Forward, forward again for what was not kept, and backward.

        Up to 7% too much: the second time, the last product of a layer may be left out. Of sequences long enough for
        MLPs in pieces, what these cost a third time is not counted.

        Args:
            length: in tokens.
            trained: whether weights get gradients; else only what they multiply does.
        """
        # attention kernels keep no scores: backwards, five products where forwards there are two (Dao 2023)
        return self.forward(length).times(4 if trained else 3, 4.5)

    def searching(self, length: int, *, gradient: bool) -> int:
        """Peak bytes on the device of a search at a length, one sequence at a time, in the checkpoint's dtype."""
        (hidden, keys), part = (GRADIENT_WHOLE, GRADIENT_PIECE) if gradient else (FORWARD_WHOLE, FORWARD_PIECE)
        at_once, size = logits_on(self.kind), min(piece_on(self.kind), length)
        logits = min(at_once, length * self.vocabulary)
        # backwards, of a quarter chunk: logits, and three copies in float32
        head = (12 + self.bytes) * min(at_once // 4, logits) if gradient else self._losses(logits)
        piece = sum(count * wide for count, wide in zip(part, (self.wide, self.keys, self.hidden), strict=True))
        layer = (keys * self.keys * length + piece * size) * self.bytes
        stream = (hidden * self.hidden + self.phases) * length * self.bytes + self.kept(length, gradient=gradient)
        stream -= self.moved(length, gradient=gradient)
        return round(self.parameters * self.bytes + stream + max(layer, head))

    def _losses(self, logits: int) -> int:
        """Bytes of so many logits and their losses, which a CPU takes by blocks."""
        if self.kind == "cpu":
            return logits * self.bytes + 8 * min(logits, LOGITS_IN_CACHE)
        return logits * (10 if self.bytes == 2 else 8)

    def kept(self, length: int, *, gradient: bool) -> int:
        """Bytes that wait for their turn: the residual stream, or with gradients the inputs of all layers."""
        return (len(self.windows) if gradient else 1) * self.hidden * length * self.bytes

    def moved(self, length: int, *, gradient: bool) -> int:
        """How much of that waits in main memory (`longrope.models.offload`)."""
        kept, room = self.kept(length, gradient=gradient), room_for_kept(self.device)
        return 0 if kept <= room else round(kept - room) if gradient else kept

    def cached(self, length: int) -> int:
        """Bytes of the keys and values of so many tokens in all layers, which generation keeps."""
        return sum(min(length, window or length) for window in self.windows) * self.keys * self.bytes

    def training(self, length: int, *, lora: int, mixed: bool) -> int:
        """Peak bytes of fine-tuning on sequences of so many tokens, one at a time, on one device.

        Args:
            length: in tokens.
            lora: its rank; 0 trains all weights, which are then float32.
            mixed: whether products are computed in bfloat16.
        """
        weights = ADAM * self.parameters
        if lora:
            weights = (self.bytes if mixed else 4) * self.parameters + ADAM * lora * self.adapted
        inputs = min(self.inputs(length, lora=lora, mixed=mixed), room_for_kept(self.device))
        return round(weights + inputs + self._layer(length, within=2 if mixed else 4))

    def inputs(self, length: int, *, lora: int, mixed: bool) -> int:
        """Bytes of the inputs of all layers, which wait for the backward pass; arguments as for `training`."""
        return len(self.windows) * length * self.hidden * (self.bytes if lora and mixed else 4)

    def _layer(self, length: int, *, within: int) -> float:
        """Bytes for one layer backwards, or for the head."""
        wide, keys, hidden = TRAINED
        head = 16 * min(LOGITS_AT_ONCE // 4, length * self.vocabulary)  # four float32 copies of a quarter chunk
        at_once = piece_on(self.kind)  # what MLPs see of a long sequence
        seen = at_once if self.tiled and length >= LONG * at_once else length
        layer = (wide * self.wide * seen + keys * self.keys * length) * within + hidden * self.hidden * 4 * length
        return max(layer, head)


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
