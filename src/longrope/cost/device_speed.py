"""A short calibration: how fast a device runs a model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedConfig

from longrope.cost.model_shape import Flops, ModelShape
from longrope.cost.timing import time_long_enough
from longrope.cost.training_speed import training_time
from longrope.models.backbone import random_backbone
from longrope.models.device_memory import free_memory

LAYERS = 2  # of the model that is timed
VOCABULARY = 1024
WEIGHTS_IN_TRAINING = 16  # bytes a weight, with gradient and products in bfloat16, and some room
Kind = Literal["passes", "training", "adapters"]


class Computation(NamedTuple):
    """What a device computes: the dtype of its products, and whether forward passes or a training.

    A training is of all weights, or of ``adapters`` beside weights that stay.
    """

    dtype: str
    kind: Kind = "passes"


@dataclass(frozen=True)
class DeviceSpeed:
    """The speed that a device reaches on a model.

    Args:
        linear: FLOPs a second in products with weights.
        attention: FLOPs a second in attention.
        training: Time of a step that trains all weights over the one that these speeds give. It is above 1 where
            products are so fast that casts of weights, activations and the loss take longer.
        adapters: The same of a step that trains adapters.
    """

    linear: float
    attention: float
    training: float = 1.0
    adapters: float = 1.0

    def seconds(self, flops: Flops, kind: Kind = "passes") -> float:
        """Return the seconds that these FLOPs take in a kind of `Computation`."""
        times = {"passes": 1.0, "training": self.training, "adapters": self.adapters}[kind]
        return times * (flops.linear / self.linear + flops.attention / self.attention)


@torch.random.fork_rng(devices=[])
def measure_device_speed(config: PreTrainedConfig, *, device: str, dtype: str, training: bool = False) -> DeviceSpeed:
    """Time attention alone, and a random model of two layers like this one.

    It takes some seconds, and no weights are needed. What else a layer does (norms, activations, rotation) counts with
    the products. Attention is PyTorch's fused one; a model with its own kind (soft caps) takes longer.

    Args:
        config: The model's config.
        device: A torch device.
        dtype: Dtype of the computation, such as bfloat16.
        training: Whether to time training too, if memory and model allow it: forward and backward passes with weights
            in float32, whose products are in the dtype.
    """
    small, torch_dtype = _small(config), getattr(torch, dtype)
    shape, free = ModelShape.of(small), free_memory(device)
    speed = _speed_of_passes(small, shape, device, torch_dtype)
    if not training or (free is not None and WEIGHTS_IN_TRAINING * shape.parameters > free):
        return speed
    shapes = shape, ModelShape.of(config)

    def time_of(weights: bool) -> float:
        return training_time(small, *shapes, speed.seconds, device=device, dtype=torch_dtype, weights=weights)

    with suppress(RuntimeError):  # out of memory, or layers that mixed precision does not run (DBRX)
        speed = replace(speed, training=time_of(True))
    with suppress(RuntimeError, ValueError):  # or layers that get no adapter
        speed = replace(speed, adapters=time_of(False))
    return speed


def _speed_of_passes(small: PreTrainedConfig, shape: ModelShape, device: str, dtype: torch.dtype) -> DeviceSpeed:
    model, heads = random_backbone(small, device).to(dtype).eval(), small.get_text_config().num_attention_heads

    def attend(length: int) -> Callable[[], object]:
        qkv = torch.randn(1, heads, length, shape.query_features // heads, dtype=dtype, device=device)
        return lambda: scaled_dot_product_attention(qkv, qkv, qkv, is_causal=True)

    def run(length: int) -> Callable[[], object]:
        tokens = torch.arange(length, device=device)[None] % VOCABULARY
        return lambda: model(input_ids=tokens, use_cache=False)

    with torch.inference_mode():
        length, seconds = time_long_enough(attend, device)
        attention = 2 * shape.query_features * length**2 / seconds
        length, seconds = time_long_enough(run, device)
    flops = shape.forward(length)
    linear = flops.linear - shape.head(length)  # the head does not run
    return DeviceSpeed(linear / max(seconds - flops.attention / attention, seconds / 10), attention)


def _small(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of a model whose text model has the last layers of this one and a small vocabulary."""
    small = copy.deepcopy(config)
    text: Any = small.get_text_config()
    layers = text.num_hidden_layers
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == layers:  # one entry per layer, such as its kind of attention
            setattr(text, name, value[-LAYERS:])
    text.num_hidden_layers = min(layers, LAYERS)
    text.vocab_size, text.pad_token_id = VOCABULARY, 0  # some configs refuse None
    if hasattr(text, "vocab_size_per_layer_input"):
        text.vocab_size_per_layer_input = VOCABULARY
    if getattr(text, "num_kv_shared_layers", None):  # a count of the whole model's last layers
        text.num_kv_shared_layers = 0
    return small
