"""Peak memory of a pass, of training and of generation, in bytes, from a model's sizes."""

from __future__ import annotations

import math

import torch

from longrope.cost.model_shape import ModelShape
from longrope.longcontext.cpu_offload import activation_budget
from longrope.longcontext.layer_chunks import chunk_size_on
from longrope.longcontext.tiling import LONG
from longrope.longcontext.token_losses import LOGITS_IN_CACHE, logits_on
from longrope.models.device_memory import free_memory

ADAM = 16  # bytes a trained parameter: float32 weight, gradient, first and second moment
CAST = 2  # bytes a trained parameter: the copy in bfloat16 that autocast keeps until the forward pass ends
# Features per token that live at once, measured on tiny and SmolLM2. Of a chunk of the sequence: of the MLP's width, of
# keys and values, of the hidden size. Of the whole length, beside the hidden states (with a gradient: beside every
# layer's): of the hidden size, of keys and values.
FORWARD_CHUNK, FORWARD_SEQUENCE = (3.0, 0.0, 6.0), (0.0, 1.0)
GRADIENT_CHUNK, GRADIENT_SEQUENCE = (6.0, 1.0, 10.5), (4.0, 5.0)
# In training, of a layer that is recomputed: of the MLP's width, of keys and values; in float32: of the hidden size.
TRAINED = (6.0, 1.0, 10.5)
SAVED = 2**30  # bytes of activations that training saves on every device instead of recomputing layers
ROOM = 0.5  # of the free memory beside weights and optimizer: what a CPU saves, where that is more


def of_pass(shape: ModelShape, length: int, *, gradient: bool) -> int:
    """Return the device's peak in a pass over one sequence, weights included, in the model's dtype.

    Args:
        shape: The model's sizes.
        length: Tokens of the sequence.
        gradient: Whether the pass has a backward one, for factors; weights are frozen.
    """
    hidden, kv = GRADIENT_SEQUENCE if gradient else FORWARD_SEQUENCE
    device_type, bytes_ = _device_type(shape), shape.bytes
    logits = min(logits_on(device_type), length * shape.vocabulary)
    # backwards, of a quarter chunk: logits, and three copies in float32
    head = (12 + bytes_) * min(logits_on(device_type) // 4, logits) if gradient else _losses(shape, logits)
    widths = (shape.mlp_features, shape.kv_features, shape.hidden_size)
    counts = GRADIENT_CHUNK if gradient else FORWARD_CHUNK
    chunk = sum(count * width for count, width in zip(counts, widths, strict=True)) * min(
        chunk_size_on(device_type), length
    )
    layer = (kv * shape.kv_features * length + chunk) * bytes_
    moved = moved_in_pass(shape, length, gradient=gradient)
    stream = (hidden * shape.hidden_size + shape.phase_features) * length * bytes_
    stream += _waiting(shape, length, gradient=gradient) - moved
    embeddings = 0 if gradient else moved  # they are whole on the device before they move
    return round(shape.weight_bytes + stream + max(layer, head, embeddings))


def moved_in_pass(shape: ModelShape, length: int, *, gradient: bool) -> int:
    """Return the bytes of a pass that wait in main memory (`longrope.longcontext.cpu_offload`); see `of_pass`."""
    waiting, room = _waiting(shape, length, gradient=gradient), activation_budget(shape.device)
    if waiting <= room:
        return 0
    return round(waiting - room) if gradient else waiting


def of_cache(shape: ModelShape, length: int) -> int:
    """Return the bytes of keys and values of ``length`` tokens in all layers, which generation keeps."""
    reaches = [length if window is None else min(length, window) for window in shape.windows]
    features = sum(reach * cached for reach, cached in zip(reaches, shape.cached_features, strict=True))
    return features * shape.bytes


def of_training(shape: ModelShape, length: int, *, lora: int, mixed: bool) -> int:
    """Return the memory of one device that fine-tuning needs, on one sequence at a time.

    Where there is more, it may save activations instead of recomputing layers (`recomputes_layers`).

    Args:
        shape: The model's sizes.
        length: Tokens of a sequence.
        lora: Rank of LoRA; 0 trains all weights, which are then float32.
        mixed: Whether products are computed in bfloat16.
    """
    inputs = _layer_inputs(shape, length, lora=lora, mixed=mixed)
    inputs -= moved_in_training(shape, length, lora=lora, mixed=mixed)
    saved = _activations(shape, length, mixed=mixed)
    layer = _trained_layer(shape, length, bytes_within=2 if mixed else 4)
    return round(_trained_weights(shape, lora=lora, mixed=mixed) + inputs + max(saved if saved <= SAVED else 0, layer))


def recomputes_layers(shape: ModelShape, length: int, *, lora: int, mixed: bool) -> bool:
    """Return whether fine-tuning recomputes each layer in the backward pass, as its activations take too much memory.

    It saves up to 1 GiB of them on every device; where that is more, a CPU half of its free memory beside weights
    and optimizer, and CUDA what may stay there (`longrope.longcontext.cpu_offload.activation_budget`).

    Args:
        shape: The model's sizes.
        length: Tokens of a sequence.
        lora: Rank of LoRA; 0 trains all weights.
        mixed: Whether products are computed in bfloat16.
    """
    limit = activation_budget(shape.device)
    if limit == math.inf:
        weights = _trained_weights(shape, lora=lora, mixed=mixed)
        limit = ROOM * ((free_memory(shape.device) or 0) - weights)
    return _activations(shape, length, mixed=mixed) > max(SAVED, limit)


def _trained_weights(shape: ModelShape, *, lora: int, mixed: bool) -> int:
    """Return the bytes of weights, gradients and the optimizer in fine-tuning."""
    weights = (ADAM + CAST * mixed) * shape.trained(lora)
    if lora:
        weights += (shape.bytes if mixed else 4) * shape.parameters
    return weights


def _activations(shape: ModelShape, length: int, *, mixed: bool) -> float:
    """Return the bytes of the activations of all layers."""
    mlp, kv, hidden = TRAINED
    of_token = (mlp * shape.mlp_features + kv * shape.kv_features) * (
        2 if mixed else 4
    ) + 4 * hidden * shape.hidden_size
    return len(shape.windows) * length * of_token


def moved_in_training(shape: ModelShape, length: int, *, lora: int, mixed: bool) -> int:
    """Return the bytes of fine-tuning that wait in main memory; arguments as for `of_training`."""
    return round(max(0, _layer_inputs(shape, length, lora=lora, mixed=mixed) - activation_budget(shape.device)))


def of_hidden_states(shape: ModelShape, length: int, *, lora: int, mixed: bool) -> int:
    """Return the device memory of a distillation of hidden states: the teacher's, and those that no longer wait.

    Arguments as for `of_training`.
    """
    teacher = (len(shape.windows) + 1) * length * shape.hidden_size * (2 if mixed else 4)
    return teacher + moved_in_training(shape, length, lora=lora, mixed=mixed)


def of_rate_test(shape: ModelShape, *, lora: int) -> tuple[int, int]:
    """Return the bytes on the device and in main memory that a test of rates adds to the training.

    They are a copy of the trained weights in main memory, which a CPU and Apple's devices train in.

    Args:
        shape: The model's sizes.
        lora: Rank of LoRA; 0 trains all weights.
    """
    saved = 4 * shape.trained(lora)
    return (saved, 0) if _device_type(shape) in ("cpu", "mps") else (0, saved)


def _device_type(shape: ModelShape) -> str:
    return torch.device(shape.device).type


def _losses(shape: ModelShape, logits: int) -> int:
    """Return the bytes of a number of logits and their losses, which a CPU computes block by block."""
    if _device_type(shape) == "cpu":
        return logits * shape.bytes + 8 * min(logits, LOGITS_IN_CACHE)
    return logits * (10 if shape.bytes == 2 else 8)


def _waiting(shape: ModelShape, length: int, *, gradient: bool) -> int:
    """Return the bytes that wait for their turn: the residual stream, or with gradients the inputs of all layers."""
    return (len(shape.windows) if gradient else 1) * shape.hidden_size * length * shape.bytes


def _layer_inputs(shape: ModelShape, length: int, *, lora: int, mixed: bool) -> int:
    """Return the bytes of the inputs of all layers, which wait for the backward pass."""
    return len(shape.windows) * length * shape.hidden_size * (shape.bytes if lora and mixed else 4)


def _trained_layer(shape: ModelShape, length: int, *, bytes_within: int) -> float:
    """Return the peak of the backward pass of one layer, or of the head, whichever is larger."""
    mlp, kv, hidden = TRAINED
    logits = min(logits_on(_device_type(shape)), length * shape.vocabulary)
    head = 16 * logits  # four float32 copies of a chunk
    chunk = chunk_size_on(_device_type(shape))  # tokens of a long sequence that an MLP takes at once
    mlp_tokens = chunk if shape.tiled and length >= LONG * chunk else length
    layer = (mlp * shape.mlp_features * mlp_tokens + kv * shape.kv_features * length) * bytes_within
    return max(layer + hidden * shape.hidden_size * 4 * length, head)
