"""Peak memory of a pass, of training and of generation: bytes, from what is known of a model."""

from __future__ import annotations

import torch

from longrope.cost.model_shape import ModelShape
from longrope.longcontext.cpu_offload import room_for_kept
from longrope.longcontext.layer_chunks import piece_on
from longrope.longcontext.tiling import LONG
from longrope.longcontext.token_losses import LOGITS_AT_ONCE, LOGITS_IN_CACHE, logits_on

ADAM = 16  # bytes a trained parameter: float32 weight, gradient, first and second moment
# Features per token that live at once, found on tiny and SmolLM2. In a pass on pieces of the sequence, of a piece:
# of the MLP's width, of keys and values, of the hidden size. Of the whole length, beside the hidden states (with a
# gradient: beside every layer's): of the hidden size, of keys and values.
FORWARD_PIECE, FORWARD_WHOLE = (3.0, 0.0, 6.0), (0.0, 1.0)
GRADIENT_PIECE, GRADIENT_WHOLE = (6.0, 1.0, 10.5), (4.0, 5.0)
# In training, of a layer computed anew: of the MLP's width, of keys and values; in float32: hidden.
TRAINED = (6.0, 1.0, 10.5)


def of_pass(anatomy: ModelShape, length: int, *, gradient: bool) -> int:
    """Peak on the device of a pass over one sequence, weights included, in the checkpoint's dtype.

    Args:
        anatomy: of the model.
        length: in tokens.
        gradient: whether it goes backwards too, for factors; weights are frozen.
    """
    (hidden, keys), part = (GRADIENT_WHOLE, GRADIENT_PIECE) if gradient else (FORWARD_WHOLE, FORWARD_PIECE)
    kind, bytes_ = _kind(anatomy), anatomy.bytes
    at_once, size = logits_on(kind), min(piece_on(kind), length)
    logits = min(at_once, length * anatomy.vocabulary)
    # backwards, of a quarter chunk: logits, and three copies in float32
    head = (12 + bytes_) * min(at_once // 4, logits) if gradient else _losses(anatomy, logits)
    widths = (anatomy.wide, anatomy.keys, anatomy.hidden)
    piece = sum(count * width for count, width in zip(part, widths, strict=True))
    layer = (keys * anatomy.keys * length + piece * size) * bytes_
    moved = moved_in_pass(anatomy, length, gradient=gradient)
    stream = (hidden * anatomy.hidden + anatomy.phases) * length * bytes_
    stream += _kept(anatomy, length, gradient=gradient) - moved
    embeddings = 0 if gradient else moved  # they are whole on the device before they move
    return round(anatomy.parameters * bytes_ + stream + max(layer, head, embeddings))


def moved_in_pass(anatomy: ModelShape, length: int, *, gradient: bool) -> int:
    """How much of a pass waits in main memory (`longrope.longcontext.cpu_offload`); arguments as for `of_pass`."""
    kept, room = _kept(anatomy, length, gradient=gradient), room_for_kept(anatomy.device)
    return 0 if kept <= room else round(kept - room) if gradient else kept


def of_cache(anatomy: ModelShape, length: int) -> int:
    """Keys and values of so many tokens in all layers, which generation keeps."""
    return sum(min(length, window or length) for window in anatomy.windows) * anatomy.keys * anatomy.bytes


def of_training(anatomy: ModelShape, length: int, *, lora: int, mixed: bool) -> int:
    """Peak of fine-tuning on sequences of so many tokens, one at a time, on one device.

    Args:
        anatomy: of the model.
        length: in tokens.
        lora: its rank; 0 trains all weights, which are then float32.
        mixed: whether products are computed in bfloat16.
    """
    weights = ADAM * anatomy.parameters
    if lora:
        weights = (anatomy.bytes if mixed else 4) * anatomy.parameters + ADAM * lora * anatomy.adapted
    inputs = _inputs(anatomy, length, lora=lora, mixed=mixed)
    inputs -= moved_in_training(anatomy, length, lora=lora, mixed=mixed)
    return round(weights + inputs + _trained_layer(anatomy, length, within=2 if mixed else 4))


def moved_in_training(anatomy: ModelShape, length: int, *, lora: int, mixed: bool) -> int:
    """How much of fine-tuning waits in main memory; arguments as for `of_training`."""
    return round(max(0, _inputs(anatomy, length, lora=lora, mixed=mixed) - room_for_kept(anatomy.device)))


def _kind(anatomy: ModelShape) -> str:
    return torch.device(anatomy.device).type


def _losses(anatomy: ModelShape, logits: int) -> int:
    """So many logits and their losses, which a CPU takes by blocks."""
    if _kind(anatomy) == "cpu":
        return logits * anatomy.bytes + 8 * min(logits, LOGITS_IN_CACHE)
    return logits * (10 if anatomy.bytes == 2 else 8)


def _kept(anatomy: ModelShape, length: int, *, gradient: bool) -> int:
    """What waits for its turn: the residual stream, or with gradients the inputs of all layers."""
    return (len(anatomy.windows) if gradient else 1) * anatomy.hidden * length * anatomy.bytes


def _inputs(anatomy: ModelShape, length: int, *, lora: int, mixed: bool) -> int:
    """The inputs of all layers, which wait for the backward pass."""
    return len(anatomy.windows) * length * anatomy.hidden * (anatomy.bytes if lora and mixed else 4)


def _trained_layer(anatomy: ModelShape, length: int, *, within: int) -> float:
    """One layer backwards, or the head."""
    wide, keys, hidden = TRAINED
    head = 16 * min(LOGITS_AT_ONCE // 4, length * anatomy.vocabulary)  # four float32 copies of a quarter chunk
    at_once = piece_on(_kind(anatomy))  # what MLPs see of a long sequence
    seen = at_once if anatomy.tiled and length >= LONG * at_once else length
    layer = (wide * anatomy.wide * seen + keys * anatomy.keys * length) * within
    return max(layer + hidden * anatomy.hidden * 4 * length, head)
