"""Put factors into the rotary module of a transformers model, for a ``with`` block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longrope.errors import LongRopeError
from longrope.models.rotary_embedding import LongRoPE
from longrope.models.rotary_slot import RescaledRotary, find_rotary_slot
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling, check_rope


@contextmanager
def patch(model: PreTrainedModel, factors: Scaling | Extension | Sequence[Scaling] | None) -> Iterator[PreTrainedModel]:
    """Run a model with other factors inside a ``with`` block; afterwards it is bit for bit what it was.

    Args:
        model: a causal language model whose checkpoint carries no rope scaling of its own.
        factors: a `Scaling` (whatever the sequence length), an `Extension` (short or long by each row's length), or
            one `Scaling` for each row of the batches to come; None leaves any model as it is.

    Raises:
        LongRopeError: if the model's rotary embedding is not one that these factors describe, if they do not
            fit it, or if the model's logits did not change.
    """
    if factors is None:
        yield model
        return
    rotary = find_rotary_slot(model)
    install_factors(model, factors)
    try:
        yield model
    finally:
        rotary.install(rotary.module)


def install_factors(model: PreTrainedModel, factors: Scaling | Extension | Sequence[Scaling]) -> PreTrainedModel:
    """Put factors into a model's rotary module and leave them there; the config stays as it is.

    `longrope.apply` changes the config too, so that a saved checkpoint has the factors.

    Returns:
        The same model.
    """
    rotary = find_rotary_slot(model)
    embedding = _embedding(rotary.rope, factors, model.device)
    rows = 1 if isinstance(factors, (Scaling, Extension)) else len(factors)
    within = 1 if isinstance(factors, Extension) and factors.long.is_identity else 2
    longest = within * rotary.rope.original_length
    try:
        rotary.install(rotary.original)
        before = _probe(model, longest, rows)
        rotary.install(RescaledRotary(rotary.original, embedding))
        same = torch.equal(before, _probe(model, longest, rows))
        if same and embedding is not None:  # factors near 1 may be lost in rounding; those of 2 are not
            doubled = _embedding(rotary.rope, Scaling([2.0] * (rotary.rope.dim // 2)), model.device)
            rotary.install(RescaledRotary(rotary.original, doubled))
            same = torch.equal(before, _probe(model, longest, rows))
            rotary.install(RescaledRotary(rotary.original, embedding))
        _guard(model, same=same, unchanged=embedding is None)
    except BaseException:
        rotary.install(rotary.module)
        raise
    return model


def _embedding(rope: Rope, factors: Scaling | Extension | Sequence[Scaling], device: torch.device) -> LongRoPE | None:
    """The module that computes cos and sin with the factors; None if they are all 1."""
    if isinstance(factors, Extension):
        check_rope(factors, rope)
        scalings, embedding = [factors.short, factors.long], LongRoPE.of(factors)
    else:
        scalings = [factors] if isinstance(factors, Scaling) else factors
        embedding = LongRoPE.static(rope, scalings)
    return None if all(scaling.is_identity for scaling in scalings) else embedding.to(device)


@torch.no_grad()
def _probe(model: PreTrainedModel, length: int, rows: int) -> Tensor:
    """Logits of a few tokens spread over a length."""
    positions = torch.linspace(0, length - 1, 9, device=model.device).long()[None]
    tokens = torch.arange(1, 10, device=model.device).expand(rows, -1) % model.config.get_text_config().vocab_size
    mask = torch.ones_like(tokens)  # without one, transformers takes gaps for borders between packed documents
    with evaluating(model):
        return model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode for a block: no dropout. Afterwards every module has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _guard(model: PreTrainedModel, *, same: bool, unchanged: bool) -> None:
    if same != unchanged:
        what = "changed the logits, though its factors are all 1" if unchanged else "did not change the logits"
        raise LongRopeError(
            f"patching model type {model.config.model_type!r} {what}: it computes its rotary embedding elsewhere"
        )
