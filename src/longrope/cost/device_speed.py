"""How fast a device is on a model: a short calibration."""

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

LAYERS, VOCABULARY = 2, 1024  # of the model that is run
SHORT, LONG, ENOUGH = 256, 16384, 0.3  # tokens, and seconds after which no longer sequence is tried


@dataclass(frozen=True)
class DeviceSpeed:
    """FLOPs a second that a device reaches on a model: in products with weights, and in attention."""

    linear: float
    attention: float

    def seconds(self, work: Flops) -> float:
        """How long it takes."""
        return work.linear / self.linear + work.attention / self.attention


@torch.random.fork_rng()
def measure_device_speed(config: PreTrainedConfig, *, device: str, dtype: str) -> DeviceSpeed:
    """Time attention alone, and a random model of two layers like this one's: some seconds, and no weights needed.

    What else a layer does (norms, activations, rotation) goes with the products. Attention is PyTorch's fused one; a
    model with one of its own (soft caps) takes longer.

    Args:
        config: of the model.
        device: a torch device.
        dtype: what it computes in, such as bfloat16.
    """
    small, kind = _small(config), getattr(torch, dtype)
    with torch.device(device):
        model = AutoModel.from_config(small, dtype=kind).eval()
    anatomy, heads = ModelShape.of(small), small.num_attention_heads

    def attend(length: int) -> Callable[[], object]:
        one = torch.randn(1, heads, length, anatomy.queries // heads, dtype=kind, device=device)
        return lambda: scaled_dot_product_attention(one, one, one, is_causal=True)

    def run(length: int) -> Callable[[], object]:
        tokens = torch.arange(length, device=device)[None] % VOCABULARY
        return lambda: model(input_ids=tokens, use_cache=False)

    length, seconds = _long_enough(attend, device)
    attention = 2 * anatomy.queries * length**2 / seconds
    length, seconds = _long_enough(run, device)
    work = anatomy.forward(length)
    linear = work.linear - 2 * length * anatomy.vocabulary * anatomy.hidden  # the head does not run
    return DeviceSpeed(linear / max(seconds - work.attention / attention, seconds / 10), attention)


def _small(config: PreTrainedConfig) -> Any:
    """The config of a model with the last layers of another one, and few tokens."""
    small: Any = copy.deepcopy(config.get_text_config())
    layers = small.num_hidden_layers
    for name, value in vars(small).items():
        if isinstance(value, list) and len(value) == layers:  # one entry a layer, such as its kind of attention
            setattr(small, name, value[-LAYERS:])
    small.num_hidden_layers = min(layers, LAYERS)
    small.vocab_size, small.pad_token_id = VOCABULARY, None
    return small


@torch.inference_mode()
def _long_enough(work_at: Callable[[int], Callable[[], object]], device: str) -> tuple[int, float]:
    """A length at which the work takes long enough to be timed, and the seconds it takes: the least of four times."""
    length = SHORT
    while True:
        work = work_at(length)
        seconds = []
        for _ in range(5):  # the first is a rehearsal
            started = time.perf_counter()
            work()
            if device != "cpu":
                torch.accelerator.synchronize()
            seconds.append(time.perf_counter() - started)
        if min(seconds) >= ENOUGH or length >= LONG:
            return length, min(seconds)
        length *= 2
