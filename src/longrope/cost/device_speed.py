"""A short calibration: how fast a device runs a model."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModel, PreTrainedConfig

from longrope.cost.model_shape import Flops, ModelShape

LAYERS = 2  # of the model that is timed
VOCABULARY = 1024
SHORTEST = 256  # tokens
LONGEST = {"cpu": 16384, "cuda": 16384}
LONGEST_ELSEWHERE = 2048  # where attention keeps all scores, as on mps
ENOUGH = 0.3  # seconds: a sequence that takes this long is not made longer


@dataclass(frozen=True)
class DeviceSpeed:
    """The speed that a device reaches on a model, in FLOPs a second: products with weights, and attention."""

    linear: float
    attention: float

    def seconds(self, flops: Flops) -> float:
        """Return the seconds that these FLOPs take."""
        return flops.linear / self.linear + flops.attention / self.attention


@torch.random.fork_rng(devices=[])
def measure_device_speed(config: PreTrainedConfig, *, device: str, dtype: str) -> DeviceSpeed:
    """Time attention alone, and a random model of two layers like this one.

    It takes some seconds, and no weights are needed. What else a layer does (norms, activations, rotation) counts with
    the products. Attention is PyTorch's fused one; a model with its own kind (soft caps) takes longer.

    Args:
        config: The model's config.
        device: A torch device.
        dtype: Dtype of the computation, such as bfloat16.
    """
    small, torch_dtype = _small(config), getattr(torch, dtype)
    with torch.device(device):
        model = AutoModel.from_config(small, dtype=torch_dtype).eval()
    shape, heads = ModelShape.of(small), small.num_attention_heads

    def attend(length: int) -> Callable[[], object]:
        qkv = torch.randn(1, heads, length, shape.query_features // heads, dtype=torch_dtype, device=device)
        return lambda: scaled_dot_product_attention(qkv, qkv, qkv, is_causal=True)

    def run(length: int) -> Callable[[], object]:
        tokens = torch.arange(length, device=device)[None] % VOCABULARY
        return lambda: model(input_ids=tokens, use_cache=False)

    length, seconds = _time_long_enough(attend, device)
    attention = 2 * shape.query_features * length**2 / seconds
    length, seconds = _time_long_enough(run, device)
    flops = shape.forward(length)
    linear = flops.linear - 2 * length * shape.vocabulary * shape.hidden_size  # the head does not run
    return DeviceSpeed(linear / max(seconds - flops.attention / attention, seconds / 10), attention)


def _small(config: PreTrainedConfig) -> Any:
    """Return the config of a model with the last layers of this one and a small vocabulary."""
    small: Any = copy.deepcopy(config.get_text_config())
    layers = small.num_hidden_layers
    for name, value in vars(small).items():
        if isinstance(value, list) and len(value) == layers:  # one entry per layer, such as its kind of attention
            setattr(small, name, value[-LAYERS:])
    small.num_hidden_layers = min(layers, LAYERS)
    small.vocab_size, small.pad_token_id = VOCABULARY, 0  # some configs refuse None
    if getattr(small, "num_kv_shared_layers", None):  # a count of the whole model's last layers
        small.num_kv_shared_layers = 0
    return small


@torch.inference_mode()
def _time_long_enough(step_at: Callable[[int], Callable[[], object]], device: str) -> tuple[int, float]:
    """Return a length at which a step takes long enough to be timed, and its seconds: the least of four runs."""
    length, longest = SHORTEST, LONGEST.get(device.partition(":")[0], LONGEST_ELSEWHERE)
    while True:
        step = step_at(length)
        seconds = []
        for _ in range(5):  # the first is a rehearsal
            started = time.perf_counter()
            step()
            if device != "cpu":
                torch.accelerator.synchronize(device)
            seconds.append(time.perf_counter() - started)
        if min(seconds) >= ENOUGH or length >= longest:
            return length, min(seconds)
        length *= 2
