"""Negative log-likelihood of every token, without the logits of a whole sequence in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast

from longrope.checks import whole
from longrope.data.token_sequences import TokenSequences, as_sequences, same_length
from longrope.errors import LongRopeError
from longrope.longcontext.context_parallel import context_parallel_of
from longrope.longcontext.tiling import tiled_layers
from longrope.models.backbone import backbone_of, vocabulary_of
from longrope.models.device_memory import explain_out_of_memory
from longrope.models.patch import replacing
from longrope.models.peft_model import check_plain_model
from longrope.models.quantized import unpack_weights

LOGITS_AT_ONCE = 2**24
LOGITS_IN_CACHE = 2**20  # in float32 4 MiB: a CPU's softmax of more waits for memory (benchmarks/losses.py)


@overload
def token_losses(
    model: PreTrainedModel,
    sequences: np.ndarray | Tensor,
    *,
    positions: np.ndarray | None = None,
    batch: int = 1,
    skip: int = 0,
    on_progress: Callable[[int], object] | None = None,
) -> np.ndarray: ...
@overload
def token_losses(
    model: PreTrainedModel,
    sequences: TokenSequences,
    *,
    positions: TokenSequences | None = None,
    batch: int = 1,
    skip: int = 0,
    on_progress: Callable[[int], object] | None = None,
) -> np.ndarray | list[np.ndarray]: ...
def token_losses(
    model: PreTrainedModel,
    sequences: TokenSequences,
    *,
    positions: TokenSequences | None = None,
    batch: int = 1,
    skip: int = 0,
    on_progress: Callable[[int], object] | None = None,
) -> np.ndarray | list[np.ndarray]:
    """Return the loss of every token but the first, given all tokens before it, in nats.

    The backbone runs once for each batch of sequences of one length, so no sequence is padded. The head runs on chunks
    of `LOGITS_AT_ONCE` logits (64 MiB in float32), on CUDA of four times as many.

    Args:
        model: A causal language model, patched or not.
        sequences: Token ids: lists, arrays or tensors of any integer type, which may differ in length.
        positions: Position ids of every token, in the shape of ``sequences``; 0, 1, 2 … if None. A sequence whose
            positions jump is still one text.
        batch: Sequences in one forward pass.
        skip: Number of losses at the beginning of each sequence to leave at 0; the head does not run on them.
        on_progress: Called after each pass with the number of finished sequences.

    Returns:
        float32 ``(sequences, tokens - 1)``, or for sequences of several lengths a list of arrays ``(tokens - 1,)``.

    Raises:
        LongRopeError: If the model is wrapped by ``peft`` or for several devices, an id is not in its vocabulary, a
            sequence has fewer than two tokens, ``batch`` or ``skip`` is out of range, or memory runs out.
    """
    check_plain_model(model)
    batch, skip = whole("batch", batch, 1), whole("skip", skip, 0)
    documents = as_sequences(sequences, vocabulary=vocabulary_of(model))
    unpack_weights(model)
    places = None if positions is None else _same_shape(as_sequences(positions, field="positions"), documents)
    losses: list[np.ndarray] = [np.empty(0)] * len(documents)
    finished = 0
    for group in _batches(documents, batch):
        tokens = torch.from_numpy(np.stack([documents[i] for i in group]))
        at = None if places is None else torch.from_numpy(np.stack([places[i] for i in group]))
        where = f"with batch {len(group)} on {model.device}"
        with explain_out_of_memory(tokens.shape[1], where, "lower the length or the batch, or use dtype bfloat16"):
            group_losses = _batch_losses(model, tokens, at, skip)
        for i, row in zip(group, group_losses, strict=True):
            losses[i] = row
        finished += len(group)
        if on_progress is not None:
            on_progress(finished)
    return np.stack(losses) if same_length(documents) else losses


def _same_shape(positions: list[np.ndarray], sequences: list[np.ndarray]) -> list[np.ndarray]:
    if [len(row) for row in positions] != [len(row) for row in sequences]:
        lengths = [len(row) for row in positions]
        raise LongRopeError(f"positions of lengths {lengths}: not those of the sequences. Pass one for every token.")
    return positions


def _batches(sequences: list[np.ndarray], batch: int) -> Iterator[list[int]]:
    """Yield the indices of at most ``batch`` sequences of one length, in their order."""
    by_length: dict[int, list[int]] = {}
    for index, sequence in enumerate(sequences):
        by_length.setdefault(len(sequence), []).append(index)
    for indices in by_length.values():
        for start in range(0, len(indices), batch):
            yield indices[start : start + batch]


@torch.inference_mode()
def _batch_losses(model: PreTrainedModel, tokens: Tensor, positions: Tensor | None, skip: int) -> np.ndarray:
    tokens = tokens.to(model.device)
    with tiled_layers(model, shape=(len(tokens), tokens.shape[1])):
        hidden = last_hidden(model, tokens, positions)
    losses = torch.zeros(len(tokens), tokens.shape[1] - 1)
    group = context_parallel_of(model)
    first = 0  # of the chunk among the hidden states of this process
    for chunk in group.rank_chunks(*tokens.shape) if group else [slice(0, tokens.shape[1])]:
        size = chunk.stop - chunk.start
        inputs = (tokens[:, chunk.start : chunk.stop + 1], hidden[:, first : first + size])
        for start, end, values in head_losses(model, *inputs, max(0, skip - chunk.start)):
            losses[:, chunk.start + start : chunk.start + end] = values
        first += size
    if group:
        losses = losses.to(model.device)  # a group may have no way between CPUs
        torch.distributed.all_reduce(losses)  # where one process has a loss, all others have 0
    return losses.cpu().numpy()


def last_hidden(model: PreTrainedModel, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
    """Return the backbone's output ``(documents, length, hidden)``."""
    arguments: dict[str, Tensor] = {}
    if positions is not None:  # without a mask, transformers takes jumps for borders between documents
        arguments = {"position_ids": positions.to(model.device), "attention_mask": torch.ones_like(tokens)}
    return backbone_of(model)(input_ids=tokens, use_cache=False, **arguments).last_hidden_state


def head_losses(
    model: PreTrainedModel, tokens: Tensor, hidden: Tensor, skip: int = 0, *, divisor: int = 1
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield losses by token from the last hidden states, in chunks: (start, end, losses ``(documents, end - start)``).

    Args:
        model: Model with the head to run.
        tokens: Token ids ``(documents, length)``.
        hidden: Last hidden states ``(documents, length, hidden)``.
        skip: Number of losses at the beginning to leave out.
        divisor: Divisor of the chunks' size; a backward pass through a chunk takes about four times its memory.
    """
    logits_per_chunk = logits_on(tokens.device.type) // divisor
    size = max(1, logits_per_chunk // (len(tokens) * model.config.get_text_config().vocab_size))
    with head_only(model) as logits_of:
        for start in range(skip, tokens.shape[1] - 1, size):
            end = min(start + size, tokens.shape[1] - 1)
            logits = logits_of(tokens[:, start:end], hidden[:, start:end].to(tokens.device))
            targets = tokens[:, start + 1 : end + 1].flatten()
            yield start, end, losses_of(logits, targets).view(len(tokens), -1)


def logits_on(kind: str) -> int:
    """Return the number of logits to compute at once on a kind of device."""
    return LOGITS_AT_ONCE * (4 if kind == "cuda" else 1)


def losses_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each row of logits ``(rows, vocabulary)`` at its target ``(rows,)``, in nats, float32."""
    rows = max(1, LOGITS_IN_CACHE // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    blocks = zip(logits.split(rows), targets.split(rows), strict=True)
    return torch.cat([cross_entropy(block.float(), ids, reduction="none") for block, ids in blocks])


class _BackboneOutput(MoeModelOutputWithPast):
    """The output of any backbone, of which only the hidden states are set."""

    def __getattr__(self, name: str) -> None:
        """Return None for a field of another backbone's output, such as Gemma 4's ``shared_kv_states``."""
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def head_only(
    model: PreTrainedModel, forward_of_model: Callable[..., Any] | None = None
) -> Iterator[Callable[[Tensor, Tensor], Tensor]]:
    """Yield a function (tokens, hidden states) -> logits that runs the model's head with its soft caps and scales.

    The tokens of all rows go through the head as one row, and the logits are ``(rows·tokens, vocabulary)``. For a slice
    ``(1, tokens, hidden)`` of a longer row, torch copies the head's weights at every call in bfloat16 on a CPU.

    Args:
        model: Model with the head to run.
        forward_of_model: Function to call in place of ``model``; the model itself if None.
    """
    backbone = backbone_of(model)
    last_states: list[Tensor] = []

    def forward(*_: object, **__: object) -> _BackboneOutput:
        return _BackboneOutput(last_hidden_state=last_states[0])  # pyright: ignore[reportArgumentType]

    def logits_of(tokens: Tensor, hidden: Tensor) -> Tensor:
        last_states[:] = [hidden.flatten(0, 1)[None]]
        return (forward_of_model or model)(input_ids=tokens.flatten()[None], use_cache=False).logits[0]

    with replacing(backbone, "forward", forward):
        yield logits_of
