"""What several processes compute together is what one computes alone; run by test_context_parallel.py with torchrun."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from families import FAMILIES, L0, build
from transformers import PreTrainedModel

from longrope.data.weighted_text import perplexity_texts
from longrope.errors import LongRopeError
from longrope.longcontext.context_parallel import ContextParallelGroup, context_parallel
from longrope.longcontext.token_losses import token_losses
from longrope.models.patch import patch
from longrope.objectives.model_loss import ModelObjective
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling

WINDOWS = {"mistral": {"sliding_window": 9}, "gemma2": {"sliding_window": 9, "attn_logit_softcapping": 2.0}}
CASES = [  # rows, tokens, piece, skip
    (1, 150, 28, 0),  # six pieces
    (2, 150, 28, 40),
    (1, 143, 20, 0),  # eight pieces: in the last exchange not all have one
    (1, 4, 28, 0),  # shorter than a piece
    (3, 17, 16, 0),
]


def check(
    model: PreTrainedModel, rows: int, length: int, piece: int, skip: int, near: float = 1e-4, **given: np.ndarray
) -> None:
    """Losses of one process and of all."""
    tokens = np.random.default_rng(length).integers(0, 90, (rows, length))
    sizes: list[int] = []
    whole = token_losses(model, tokens, batch=rows, skip=skip, **given)  # the first call also checks the model's chunks
    with model.base_model.layers[-1].register_forward_hook(lambda _, __, out: sizes.append(out.shape[1])):
        found = token_losses(context_parallel(model, piece), tokens, batch=rows, skip=skip, **given)
    own = ContextParallelGroup(dist.get_rank(), dist.get_world_size(), piece).rank_chunks(rows, length)
    assert sizes == [sum(part.stop - part.start for part in own)]
    np.testing.assert_allclose(found, whole, rtol=near, atol=near)
    everywhere = [torch.empty(found.shape) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, torch.from_numpy(found))
    assert all(np.array_equal(one.numpy(), found) for one in everywhere)


def refuse_gradients(model: PreTrainedModel) -> None:
    objective = ModelObjective(model, perplexity_texts(np.ones((1, 100), dtype=np.int64)))
    with pytest.raises(LongRopeError, match="gradients: several processes cannot compute one together"):
        list(objective.evaluate([[(Scaling([2.0] * 8), 0)]], gradient=True))


def refuse_other_attention(model: PreTrainedModel) -> None:
    model.set_attn_implementation("eager")
    with pytest.raises(LongRopeError, match=r"attention: several processes cannot share this kind. Load .* sdpa"):
        token_losses(model, np.ones((1, 100), dtype=np.int64))


def refuse_hybrid_layers(_: PreTrainedModel) -> None:
    hybrid = context_parallel(build("lfm2", layer_types=["conv", "full_attention"]), 28)
    with pytest.raises(LongRopeError, match="'lfm2': several processes cannot share its layers"):
        token_losses(hybrid, np.ones((1, 100), dtype=np.int64))


def main() -> None:
    """All families, and what differs by position."""
    dist.init_process_group("gloo")
    for family in FAMILIES:
        check(build(family), 1, 150, 28, 0)
    for family, given in WINDOWS.items():
        check(build(family, **given), 1, 150, 28, 0)
    for case in CASES:
        check(build("llama"), *case)
    check(build("llama").bfloat16(), 1, 150, 28, 0, near=0.1)
    jumps = np.arange(150)[None] + 500 * (np.arange(150) > 70)
    check(build("llama"), 1, 150, 28, 0, positions=jumps)
    rope = Rope.of(build("llama"))
    both = Extension(rope, Scaling([2.0] * (rope.dim // 2)), Scaling([3.0] * (rope.dim // 2)), 4 * L0)
    for length in (L0, L0 + 50):  # which set, the longest position of all processes decides
        with patch(model := build("llama"), both):
            check(model, 1, length, 28, 0)
    for refused in (refuse_gradients, refuse_other_attention, refuse_hybrid_layers):
        refused(context_parallel(build("llama"), 28))
    dist.destroy_process_group()
    sys.stdout.write("equal\n")  # in one write: print of an unbuffered process makes two, which processes mix


if __name__ == "__main__":
    main()
