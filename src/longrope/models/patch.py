"""Put factors into the rotary module of a transformers model, for a ``with`` block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longrope.errors import LongRopeError
from longrope.models.adapter import switched_adapter
from longrope.models.rotary_embedding import LongRoPE
from longrope.models.rotary_slot import find_rotary_slot
from longrope.models.rotary_tables import BLOCK
from longrope.models.runnable import check_loaded
from longrope.rope import Rope, rope_type_of
from longrope.scaling import Extension, Scaling, check_rope


@contextmanager
def patch(model: PreTrainedModel, scaling: Scaling | Extension | Sequence[Scaling] | None) -> Iterator[PreTrainedModel]:
    """Run a model with rescale factors inside a ``with`` block, and restore it bit for bit afterwards.

    Inside another such block the inner factors count. ``model.generate`` with an `Extension` needs `generating`
    instead, as a key/value cache would mix the short and the long factors here.

    Args:
        model: Causal language model. If its checkpoint carries a rope scaling, the factors multiply it.
        scaling: A `Scaling` for every sequence length, an `Extension` (short or long by each row's length), or one
            `Scaling` for each row of a batch; None leaves any model unchanged, but a dynamic scaling of the checkpoint
            begins as if no text had been read before.

    Raises:
        LongRopeError: The model is wrapped for several devices or has no weights, the factors do not describe or fit
            its rotary embedding, or its logits did not change.
    """
    check_loaded(model)
    if scaling is None:
        if rope_type_of(model) == "dynamic":
            find_rotary_slot(model).forget_lengths()
        yield model
        return
    rotary = find_rotary_slot(model)
    install_factors(model, scaling)
    try:
        yield model
    finally:
        rotary.restore()


def install_factors(model: PreTrainedModel, scaling: Scaling | Extension | Sequence[Scaling]) -> PreTrainedModel:
    """Put factors into a model's rotary module and leave them there; the config stays as it is.

    `longrope.apply` changes the config too, so that a saved checkpoint has the factors.

    Returns:
        The same model.
    """
    rotary = find_rotary_slot(model)
    embedding = _embedding(rotary.rope, scaling, model.device)
    rows = len(scaling) if isinstance(scaling, (list, tuple)) else 1
    only_short = isinstance(scaling, Extension) and scaling.long.is_identity
    length = min(BLOCK**2, rotary.rope.original_length if only_short else 2 * rotary.rope.original_length)
    try:
        rotary.use_originals()
        before = _sparse_logits(model, length, rows)
        rotary.rescale(embedding, switched_adapter(model))
        unchanged = torch.equal(before, _sparse_logits(model, length, rows))
        if unchanged and embedding is not None:  # rounding may hide factors near 1, but not factors of 2
            doubled = _embedding(rotary.rope, Scaling([2.0] * (rotary.rope.dim // 2)), model.device)
            rotary.rescale(doubled)
            unchanged = torch.equal(before, _sparse_logits(model, length, rows))
            rotary.rescale(embedding, switched_adapter(model))
        if embedding is None:
            rotary.forget_lengths()
        if before.isfinite().all():  # else no two logits are equal
            _check_effect(model, unchanged=unchanged, is_identity=embedding is None)
    except BaseException:
        rotary.restore()
        raise
    return model


def _embedding(rope: Rope, scaling: Scaling | Extension | Sequence[Scaling], device: torch.device) -> LongRoPE | None:
    """Return the module that computes cos and sin with the factors; None if they are all 1.

    A checkpoint with two sets needs the module even then: its own one chooses a set for all rows together.
    """
    if isinstance(scaling, Extension):
        check_rope(scaling, rope)
        scalings = [scaling.short, scaling.long]
        embedding = LongRoPE.of(scaling)
    else:
        rows = scaling if isinstance(scaling, (list, tuple)) else [scaling]
        scalings = cast("Sequence[Scaling]", rows)  # check_rope refuses the others
        for row in scalings:
            check_rope(row, rope)
        embedding = LongRoPE.static(rope, scalings)
    unchanged = all(scaling.is_identity for scaling in scalings) and not rope.has_two_sets
    return None if unchanged else embedding.to(device)


@torch.no_grad()
def _sparse_logits(model: PreTrainedModel, length: int, rows: int) -> Tensor:
    """Return the logits of nine tokens whose positions are spread over a length."""
    positions = torch.linspace(0, length - 1, 9, device=model.device).long()[None]
    tokens = torch.arange(1, 10, device=model.device).expand(rows, -1) % model.config.get_text_config().vocab_size
    mask = torch.ones_like(tokens)  # without one, transformers takes gaps for borders between packed documents
    with evaluating(model):
        return model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits.clone()


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Set evaluation mode (no dropout) for a block, then restore the mode of every module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def replacing(module: nn.Module, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Replace a method of one module by a function inside the block, and restore it afterwards."""
    before = vars(module).get(name)
    vars(module)[name] = function
    try:
        yield
    finally:
        del vars(module)[name]
        if before is not None:
            vars(module)[name] = before


def _check_effect(model: PreTrainedModel, *, unchanged: bool, is_identity: bool) -> None:
    if unchanged != is_identity:
        effect = "changed the logits, though its factors are all 1" if is_identity else "did not change the logits"
        raise LongRopeError(
            f"patching model type {model.config.model_type!r} {effect}: it computes its rotary embedding elsewhere. "
            "longrope does not support this model type."
        )
