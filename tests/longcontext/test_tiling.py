from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import families
import pytest
import torch
from families import build, tokens
from torch import Tensor, nn
from transformers import PreTrainedModel

from longrope.longcontext import tiling as tiled_module
from longrope.longcontext.chunk_check import reason_for_whole_layers
from longrope.longcontext.tiling import tile_mlps, tiled_layers, why_whole_layers

WINDOWS = {
    "mistral": {"sliding_window": 9},
    "phi3": {"sliding_window": 40},
    "gemma2": {"sliding_window": 9, "attn_logit_softcapping": 2.0},
    "starcoder2": {"sliding_window": 25},
    "olmo3": {"sliding_window": 16},
    "gemma3_text": {"sliding_window": 1},
}


def hidden(model: PreTrainedModel, x: Tensor, **given: Tensor) -> Tensor:
    return model.base_model(input_ids=x, use_cache=False, **given).last_hidden_state


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_pieces_give_what_the_whole_gives(family: str, rows: int) -> None:
    model, x, seen = build(family), tokens(rows, 150), []
    hooks = [layer.register_forward_hook(lambda _, given, __: seen.append(1)) for layer in model.base_model.layers]
    mlp = next(module for name, module in model.base_model.layers[-1].named_children() if "mlp" in name)
    with torch.no_grad(), mlp.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1])):
        whole = hidden(model, x)
        with tiled_layers(model, 28):  # the first call checks that this model's layers can run on chunks
            seen.clear()
            assert torch.allclose(hidden(model, x), whole, rtol=1e-4, atol=1e-4)
        assert sum(seen) == len(hooks) + 150  # each layer was called once, its MLP with every token once
        assert max(seen) == 28 // rows
        assert torch.equal(hidden(model, x), whole)
    assert not any("forward" in vars(part) for part in model.modules())


@pytest.mark.parametrize("family", WINDOWS)
def test_windows_and_caps(family: str) -> None:
    """Shorter than a piece, as long as several, of one token; transformers writes their masks down."""
    model, x = build(family, **WINDOWS[family]), tokens(1, 150)
    with torch.no_grad():
        whole, unlike = hidden(model, x), hidden(build(family), x)
        with tiled_layers(model, 28):
            assert torch.allclose(hidden(model, x), whole, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(unlike, whole, rtol=1e-3, atol=1e-3)


def trained(model: PreTrainedModel, x: Tensor) -> list[Tensor]:
    """The gradients of all weights."""
    model.train().activation_checkpointing_enable({"use_reentrant": False})
    model.zero_grad()
    model(input_ids=x, labels=x, use_cache=False).loss.backward()
    return [one.grad.clone() for one in model.parameters() if one.grad is not None]


@pytest.mark.parametrize("family", families.FAMILIES)
def test_mlps_in_pieces_train_as_whole_ones(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled_module, "chunk_size_on", lambda _: 20)
    model, x, seen = build(family), tokens(2, 50), []
    wanted = trained(model, x)
    tile_mlps(model)
    inner = [part for name, part in model.named_modules() if ".mlp." in name and isinstance(part, nn.Linear)]
    for part in inner:
        part.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[:-1].numel()))
    for one, other in zip(trained(model, x), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))
    if "mixtral" not in family and "moe" not in family:
        assert max(seen) == 20
    seen.clear()
    trained(model, x[:, :39])  # not long enough
    assert not seen or max(seen) == 78


def test_positions_may_jump() -> None:
    """A jump is no border between documents."""
    model, x = build("llama"), tokens(1, 150)
    given = {
        "position_ids": torch.arange(150)[None] + 500 * (torch.arange(150) > 70),
        "attention_mask": torch.ones(1, 150),
    }
    with torch.no_grad():
        whole = hidden(model, x, **given)
        with tiled_layers(model, 28):
            assert torch.allclose(hidden(model, x, **given), whole, rtol=1e-4, atol=1e-4)


def test_no_mask_is_made() -> None:
    """Of a layer with a window, transformers writes down who sees whom: (1, 1, length, length)."""
    model, sizes = build("gemma3_text"), []
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _, __, named: sizes.append(named["attention_mask"]), with_kwargs=True
        )
    with torch.no_grad():
        hidden(model, tokens(1, 50))
        assert max(0 if mask is None else mask.numel() for mask in sizes) == 50 * 50
        with tiled_layers(model, 14):
            sizes.clear()
            hidden(model, tokens(1, 50))
    assert sizes
    assert all(mask is None for mask in sizes)


def test_other_attention_sees_whole_sequences() -> None:
    model, x = build("llama"), tokens(1, 50)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        whole = hidden(model, x)
        with tiled_layers(model, 14):
            assert torch.allclose(hidden(model, x), whole, rtol=1e-4, atol=1e-4)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("broken", [[], [3], list(range(48))])
def test_chunks_that_give_no_numbers_mean_whole_layers(broken: list[int]) -> None:
    """More than a few tokens of them; the plain pass is finite."""
    model = build("llama", num_hidden_layers=1)

    @contextmanager
    def tiled(_: int) -> Iterator[None]:
        def breaks(_module: nn.Module, _inputs: object, states: Tensor) -> None:
            states[:, broken] = math.nan

        with model.model.norm.register_forward_hook(breaks):
            yield

    reason = reason_for_whole_layers(model, tiled)
    assert (reason is not None) == (len(broken) > 1)


def test_an_error_inside_restores_the_model() -> None:
    model = build("llama").train()
    with pytest.raises(RuntimeError, match="mine"), tiled_layers(model, 7):
        raise RuntimeError("mine")
    assert not any("forward" in vars(part) for part in model.modules())
    assert all(part.training for part in model.modules())
    assert model.config._attn_implementation == "sdpa"


def test_a_window_that_only_the_mask_knows(caplog: pytest.LogCaptureFixture) -> None:
    """The check's few tokens lie within the window; PhiMoE does not pass it to its attention."""
    fields = {"sliding_window": 64, "num_local_experts": 4, "num_experts_per_tok": 2}
    model = build("phimoe", **fields)
    for length in (60, 150):
        x = tokens(1, length)
        with torch.no_grad():
            plain = model(input_ids=x, use_cache=False).logits
            with tiled_layers(model, 16, shape=(1, length)):
                chunked = model(input_ids=x, use_cache=False).logits
        torch.testing.assert_close(chunked, plain, atol=1e-3, rtol=1e-3)
    assert "sliding_window = 64 limits what a token sees by a mask" in caplog.text
    with tiled_layers(model, 16, shape=(1, 60)):
        assert model.config._attn_implementation == "longrope"  # chunks where the window does not matter


@pytest.mark.parametrize(("quantised", "whole"), [(True, False), (False, True)])
def test_kernels_that_round_by_all_tokens_of_a_pass_may_run_in_chunks(quantised: bool, whole: bool) -> None:
    """As int8 weights of bitsandbytes do, where an exact model that differs so much needs every token."""
    model: Any = build("llama")

    def rounded(_: nn.Module, __: object, output: Tensor) -> Tensor:
        step = output.abs().max() / 127
        return (output / step).round() * step

    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_hook(rounded)
    model.is_quantized = quantised
    assert (why_whole_layers(model) is not None) == whole
