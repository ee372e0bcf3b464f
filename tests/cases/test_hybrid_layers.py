"""Layers that need more than keys and values of earlier tokens: a pass in chunks has transformers' own losses."""

from __future__ import annotations

import logging
from typing import Any

import families
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from longrope.longcontext.tiling import tiled_layers
from longrope.longcontext.token_losses import token_losses
from longrope.models.rotary_embedding import LongRoPE
from longrope.models.rotary_slot import RescaledRotary, find_rotary_slot
from longrope.objectives.factor_gradient import frozen
from longrope.scaling import Scaling

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "shared_expert_intermediate_size": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 16.0, "original_max_position_embeddings": 64}
LLAMA4 = {"head_dim": 16, "num_local_experts": 2, "intermediate_size_mlp": 96, "num_hidden_layers": 4}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16}
WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "convolution": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "linear attention": ("qwen3_next", {**EXPERTS, **LINEAR, "num_hidden_layers": 4}),
    "lightning attention": ("minimax", {"head_dim": 16, "num_local_experts": 4, "block_size": 16}),
    "dual attention": ("afmoe", {**EXPERTS, "sliding_window": 64, "num_hidden_layers": 4}),
    "positions": ("ministral3", {"head_dim": 16, "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1}}),
    "mamba": ("granitemoehybrid", {"layer_types": ["mamba", "attention"], "num_local_experts": 0, **MAMBA}),
    "tuples": ("falcon_h1", {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16}),
    "experts": ("jetmoe", {"kv_channels": 16, "num_local_experts": 4}),
    "dynamic masks": ("doge", {"keep_window_size": 40}),
    "chunked attention": ("llama4_text", {**LLAMA4, "attention_chunk_size": 50}),
}
CHUNKED = {
    "complex numbers": ("llama4_text", LLAMA4),
    "gated layers": ("olmo_hybrid", {"num_hidden_layers": 4}),
    "local layers": ("modernbert-decoder", {"local_attention": 32, "num_hidden_layers": 4}),
}


def plain_losses(model: PreTrainedModel, tokens: np.ndarray) -> np.ndarray:
    """Return the losses of transformers alone."""
    ids = torch.from_numpy(tokens)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1).numpy()


@pytest.mark.parametrize("kind", WHOLE | CHUNKED)
def test_losses_beyond_one_chunk_equal_those_of_transformers(kind: str) -> None:
    name, fields = (WHOLE | CHUNKED)[kind]
    model, tokens = families.build(name, **fields), families.tokens(1, 2100).numpy()
    for length in (150, 2100):
        losses = token_losses(model, tokens[:, :length])
        np.testing.assert_allclose(losses, plain_losses(model, tokens[:, :length]), atol=1e-4)


def test_one_line_says_that_layers_run_whole(caplog: pytest.LogCaptureFixture) -> None:
    name, fields = WHOLE["convolution"]
    model, tokens = families.build(name, **fields), families.tokens(1, 2100).numpy()
    with caplog.at_level(logging.WARNING, "longrope"):
        token_losses(model, tokens[:, :100])
        assert not caplog.records  # one chunk takes no more memory than a whole layer
        token_losses(model, tokens)
        token_losses(model, tokens)
    (record,) = caplog.records
    assert "model type 'lfm2' runs whole layers" in record.getMessage()


def test_known_layers_stay_in_chunks(caplog: pytest.LogCaptureFixture) -> None:
    token_losses(families.build("llama"), families.tokens(1, 2100).numpy())
    assert not caplog.records


def test_a_chunk_limit_counts_from_its_length_on() -> None:
    """Llama 4's attention_chunk_size hides earlier tokens by a mask, which chunks of the sequence do not have."""
    model, tokens = families.build("llama4_text", **LLAMA4, attention_chunk_size=50), families.tokens(1, 120).numpy()
    free = families.build("llama4_text", **LLAMA4)
    np.testing.assert_allclose(token_losses(model, tokens), plain_losses(model, tokens), atol=1e-5)
    assert np.abs(plain_losses(free, tokens) - plain_losses(model, tokens)).max() > 1e-2


def test_gradients_of_whole_layers() -> None:
    name, fields = WHOLE["convolution"]
    model, ids = families.build(name, **fields), families.tokens(1, 90)
    inputs = model.get_input_embeddings()(ids).detach().requires_grad_()
    grads = []
    with frozen(model):
        model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state.square().sum().backward()
        grads.append(inputs.grad)
        inputs.grad = None
        with tiled_layers(model, 20):
            model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state.square().sum().backward()
        grads.append(inputs.grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_complex_embeddings_have_the_factors() -> None:
    """Llama 4 multiplies by complex numbers; with factors of 1 through our module they are its own."""
    slot = find_rotary_slot(families.build("llama4_text", **LLAMA4))
    embedding = LongRoPE.static(slot.rope, [Scaling([1.0] * (slot.rope.dim // 2))])
    x, positions = torch.zeros(1, 5, 1), torch.arange(5)[None] + 40
    rotated = RescaledRotary(slot.rope, slot.module, embedding)(x, positions)
    torch.testing.assert_close(rotated, slot.module(x, positions), rtol=0, atol=1e-5)
