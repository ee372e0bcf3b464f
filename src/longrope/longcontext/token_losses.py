"""Negative log-likelihood by token in memory that does not grow with vocabulary times length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast

from longrope.longcontext.context_parallel import context_parallel_of
from longrope.longcontext.tiling import tiled_layers
from longrope.models.device_memory import explain_out_of_memory

LOGITS_AT_ONCE = 2**24
LOGITS_IN_CACHE = 2**20  # in float32 4 MiB: a CPU's softmax of more waits for memory (benchmarks/losses.py)


def token_losses(
    model: PreTrainedModel,
    tokens: np.ndarray,
    *,
    positions: np.ndarray | None = None,
    batch: int = 1,
    skip: int = 0,
    done: Callable[[int], None] | None = None,
) -> np.ndarray:
    """The loss of every token but the first given those before it, in nats, float32 ``(documents, length - 1)``.

    The backbone runs once a batch; the head runs on chunks of `LOGITS_AT_ONCE` logits (64 MiB in float32), on
    CUDA of four times as many.

    Args:
        model: a causal language model, patched or not.
        tokens: ``(documents, length)`` token ids.
        positions: ``(documents, length)``; 0, 1, 2 … if None. Where they jump, it is still one text.
        batch: documents in one forward pass.
        skip: how many losses at the beginning are not wanted; they are 0, and the head does not run on them.
        done: called with the number of finished documents after each pass.

    Raises:
        LongRopeError: if memory runs out; says at which length.
    """
    losses = []
    for start in range(0, len(tokens), batch):
        part = torch.from_numpy(tokens[start : start + batch])
        at = None if positions is None else torch.from_numpy(positions[start : start + batch])
        where = f"with batch {len(part)} on {model.device}"
        with explain_out_of_memory(tokens.shape[1], where, "lower the length or the batch, or use dtype bfloat16"):
            losses.append(_batch_losses(model, part, at, skip))
        if done is not None:
            done(start + len(part))
    return np.concatenate(losses)


@torch.inference_mode()
def _batch_losses(model: PreTrainedModel, tokens: Tensor, positions: Tensor | None, skip: int) -> np.ndarray:
    tokens = tokens.to(model.device)
    with tiled_layers(model):
        hidden = last_hidden(model, tokens, positions)
    losses, how, begin = torch.zeros(len(tokens), tokens.shape[1] - 1), context_parallel_of(model), 0
    for part in how.own(*tokens.shape) if how else [slice(0, tokens.shape[1])]:
        here, own = tokens[:, part.start : part.stop + 1], slice(begin, begin := begin + part.stop - part.start)
        for start, end, found in head_losses(model, here, hidden[:, own], max(0, skip - part.start)):
            losses[:, part.start + start : part.start + end] = found
    if how:
        losses = losses.to(model.device)  # a group may have no way between CPUs
        torch.distributed.all_reduce(losses)  # where one has a loss, all others have 0
    return losses.cpu().numpy()


def last_hidden(model: PreTrainedModel, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
    """The backbone's output ``(documents, length, hidden)``."""
    given: dict[str, Tensor] = {}
    if positions is not None:  # without a mask, transformers takes jumps for borders between documents
        given = {"position_ids": positions.to(model.device), "attention_mask": torch.ones_like(tokens)}
    return model.base_model(input_ids=tokens, use_cache=False, **given).last_hidden_state


def head_losses(
    model: PreTrainedModel, tokens: Tensor, hidden: Tensor, skip: int = 0, *, parts: int = 1
) -> Iterator[tuple[int, int, Tensor]]:
    """Losses by token from the last hidden states, in chunks: (start, end, losses ``(documents, end - start)``).

    Args:
        model: whose head it is.
        tokens: ``(documents, length)``.
        hidden: ``(documents, length, hidden)``.
        skip: how many losses at the beginning are left out.
        parts: make the chunks so many times smaller; a backward pass through one takes about four times its memory.
    """
    at_once = logits_on(tokens.device.type) // parts
    size = max(1, at_once // (len(tokens) * model.config.get_text_config().vocab_size))
    with head_only(model) as logits_of:
        for start in range(skip, tokens.shape[1] - 1, size):
            end = min(start + size, tokens.shape[1] - 1)
            logits = logits_of(tokens[:, start:end], hidden[:, start:end].to(tokens.device)).flatten(0, 1)
            targets = tokens[:, start + 1 : end + 1].flatten()
            yield start, end, losses_of(logits, targets).view(len(tokens), -1)


def logits_on(kind: str) -> int:
    """Logits at once on a kind of device."""
    return LOGITS_AT_ONCE * (4 if kind == "cuda" else 1)


def losses_of(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of each row of logits ``(rows, vocabulary)`` at its target ``(rows,)``, in nats, float32."""
    rows = max(1, LOGITS_IN_CACHE // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    blocks = zip(logits.split(rows), targets.split(rows), strict=True)
    return torch.cat([cross_entropy(some.float(), wanted, reduction="none") for some, wanted in blocks])


@contextmanager
def head_only(
    model: PreTrainedModel, forward_of_model: Callable[..., Any] | None = None
) -> Iterator[Callable[[Tensor, Tensor], Tensor]]:
    """A function (tokens, hidden states) -> logits that runs the model's own head, soft caps and scales included.

    Args:
        model: whose head it is.
        forward_of_model: what runs it; ``model`` itself if None.
    """
    backbone = model.base_model
    given: list[Tensor] = []

    def forward(*_: object, **__: object) -> MoeModelOutputWithPast:  # has the fields of all backbones' outputs
        return MoeModelOutputWithPast(last_hidden_state=given[0])  # pyright: ignore[reportArgumentType]

    def logits_of(tokens: Tensor, hidden: Tensor) -> Tensor:
        given[:] = [hidden]
        return (forward_of_model or model)(input_ids=tokens, use_cache=False).logits

    replaced = vars(backbone).get("forward")
    backbone.forward = forward
    try:
        yield logits_of
    finally:
        del backbone.forward
        if replaced is not None:
            backbone.forward = replaced
