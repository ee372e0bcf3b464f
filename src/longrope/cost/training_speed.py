"""How much longer a training step takes on a device than its FLOPs say."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedConfig

from longrope.cost.model_shape import Flops, ModelShape
from longrope.cost.timing import time_long_enough
from longrope.longcontext.chunked_sum import sum_over_chunks
from longrope.longcontext.token_losses import logits_on
from longrope.models.backbone import random_backbone
from longrope.models.lora import add_lora, autocast_alone_casts

RANK = 8  # of the adapters of plans by hours, and of those that are timed
HEAD_WEIGHTS = 2**26  # most weights of a head that is timed: a part of the vocabulary of larger ones
ENOUGH = 2.0  # times as long as forward passes are timed, so that activations leave a CPU's caches as in training
LONGEST = 2048  # tokens, as in a sparse window: kernels of short sequences leave a GPU idle, and memory is small


def training_time(
    small: PreTrainedConfig,
    shape: ModelShape,
    full_shape: ModelShape,
    seconds_of: Callable[[Flops], float],
    *,
    device: str,
    dtype: torch.dtype,
    weights: bool,
) -> float:
    """Return the time of a training step over the one of its FLOPs: of layers and head by their shares of the FLOPs.

    Weights that get gradients are in float32. Those that get none have LoRA adapters, as in a training, or let
    gradients pass where `peft` is missing. The loss is computed on chunks of as many tokens as in training: each one
    adds to the gradient of the whole head.

    Args:
        small: Config of a model with a few layers of the whole one.
        shape: Sizes of that small model.
        full_shape: Sizes of the whole model.
        seconds_of: Seconds of FLOPs in forward passes.
        device: A torch device.
        dtype: Dtype of the products.
        weights: Whether weights get gradients.
    """
    passes, kind = 2 + weights, device.partition(":")[0]
    model = random_backbone(small, device).train().requires_grad_(weights)
    adapted = not weights and find_spec("peft") is not None
    if adapted:
        model = add_lora(model.to(dtype), RANK)
    else:
        model.get_input_embeddings().requires_grad_(True)
    with torch.device(device):
        rows = min(full_shape.vocabulary, max(1, HEAD_WEIGHTS // full_shape.hidden_size))
        head = torch.nn.Linear(full_shape.hidden_size, rows, bias=False).requires_grad_(weights)
    trained = [head.weight] if weights else []
    chunk = max(1, logits_on(kind) // full_shape.vocabulary)

    def step(loss: Callable[[], Tensor]) -> Callable[[], object]:
        def run() -> None:
            with torch.autocast(kind, dtype=dtype, enabled=dtype != torch.float32):
                value = loss()
            value.backward()

        return run

    def layers(length: int) -> Callable[[], object]:
        tokens = torch.arange(length, device=device)[None] % shape.vocabulary
        return step(lambda: model(input_ids=tokens, use_cache=False).last_hidden_state.float().square().mean())

    def logits(length: int) -> Callable[[], object]:
        hidden = torch.randn(1, length, full_shape.hidden_size, device=device, requires_grad=True)
        targets = torch.arange(length, device=device)[None] % rows
        return step(lambda: sum_over_chunks(loss_of, hidden, (targets,), trained, chunk))

    def loss_of(states: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(head(states[0]).float(), targets[0])

    with autocast_alone_casts(model) if adapted else nullcontext():
        length, seconds = time_long_enough(layers, device, enough=ENOUGH, longest=LONGEST)
    flops = shape.backward(length, trained=weights, recomputed=False)
    layer_time = seconds / seconds_of(Flops(flops.linear - passes * shape.head(length), flops.attention))
    length, seconds = time_long_enough(logits, device, enough=ENOUGH, longest=LONGEST)
    head_time = seconds / seconds_of(Flops(passes * 2 * length * full_shape.hidden_size * rows))
    share = full_shape.head(1) / full_shape.forward(1).linear
    return share * head_time + (1 - share) * layer_time
