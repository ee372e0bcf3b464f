"""Text that is read on and continued, token by token, in a cache that does not copy what it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import all_types
import families
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from longrope.models.cache import ReadText, can_forget
from longrope.models.grouped_attention import FEW
from longrope.models.growing_cache import LEAST_ROOM, GrowingLayer, growing_cache

WINDOW = {"sliding_window": 24}
FAMILIES = [("llama", {}), ("gpt_neox", {}), ("mistral", WINDOW), ("gemma2", WINDOW), ("gemma3_text", WINDOW)]


def read_in_steps(text: ReadText, tokens: Tensor) -> list[Tensor]:
    """Return the logits of passes of one and several tokens, some of them forgotten, past two borders of the room."""
    logits = [text.logits(tokens[:, :30])]
    for _ in range(2):
        with text.continued() as question:
            logits += [question.logits(tokens[:, 30:45]), question.logits(tokens[:, 45:46])]
            with question.continued() as option:
                logits.append(option.logits(tokens[:, :5]))
            logits += [question.logits(tokens[:, i : i + 1]) for i in range(46, 60)]
    logits += [text.logits(tokens[:, 30:130]), text.logits(tokens[:, 130:131]), text.logits(tokens[:, 131:])]
    return logits


@pytest.mark.parametrize(("family", "fields"), FAMILIES)
@torch.inference_mode()
def test_a_text_read_in_steps_is_as_with_transformers_cache(family: str, fields: dict[str, int]) -> None:
    """Bit by bit, in a batch; and its logits are those of the text without a cache."""
    model, tokens = families.build(family, **fields), families.tokens(2, 300)
    text, plain = ReadText(model), ReadText(model, DynamicCache())
    logits, expected = read_in_steps(text, tokens), read_in_steps(plain, tokens)
    assert all(type(layer) is GrowingLayer for layer in text.cache.layers)
    assert text.size == plain.size == text.cache.get_seq_length() == 300
    for step, same in zip(logits, expected, strict=True):
        assert torch.equal(step, same)
    for layer, same in zip(text.cache.layers, plain.cache.layers, strict=True):
        assert torch.equal(layer.keys, same.keys)
        assert torch.equal(layer.values, same.values)
    uncached = families.logits(model, tokens)
    torch.testing.assert_close(torch.cat([logits[0], *logits[-3:]], dim=1), uncached, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(logits[1], uncached[:, 30:45], rtol=1e-4, atol=1e-3)


@torch.inference_mode()
def test_a_token_copies_no_token_before_it() -> None:
    text, tokens = ReadText(families.build("llama")), families.tokens(1, 2000)
    text.read(tokens[:, :1000])
    places = []
    for i in range(1000, 2000):
        text.read(tokens[:, i : i + 1])
        places.append((text.cache.layers[0].keys.data_ptr(), text.cache.layers[1].values.data_ptr()))
    assert len(set(places)) <= 1000 / LEAST_ROOM
    assert text.cache.layers[0].key_room.shape[2] <= 2000 * 17 / 16 + 1


def remove(tokens: int) -> Callable[[DynamicLayer], None]:
    return lambda layer: layer.crop(-min(tokens, layer.get_seq_length()))


OPERATIONS: list[Callable[[DynamicLayer], None]] = [
    *(remove(tokens) for tokens in (1, 9, 1000)),
    lambda layer: layer.reorder_cache(torch.tensor([1, 0])),
    lambda layer: layer.batch_select_indices(torch.tensor([1, 1])),
    lambda layer: layer.reset(),
]


@given(steps=st.lists(st.one_of(st.integers(1, 90), st.sampled_from(OPERATIONS)), max_size=12))
def test_a_layer_holds_what_transformers_layer_holds(steps: list[int | Callable[[DynamicLayer], None]]) -> None:
    """After any passes, removed tokens, and changes of its rows; keys and values of unlike sizes."""
    layer, plain, draws = GrowingLayer(), DynamicLayer(), torch.Generator().manual_seed(0)
    for step in steps:
        if callable(step):
            if layer.is_initialized:
                step(layer)
                step(plain)
            continue
        keys, values = (torch.randn(2, 3, step, size, generator=draws) for size in (4, 6))
        for states, same in zip(layer.update(keys, values), plain.update(keys, values), strict=True):
            assert torch.equal(states, same)
        assert layer.get_seq_length() == plain.get_seq_length()


@pytest.mark.parametrize("kind", ["olmo_hybrid", "mistral", "gemma3_text", "llama"])
def test_windows_and_recurrences_keep_their_layers(kind: str) -> None:
    config = all_types.build(kind).config if kind == "olmo_hybrid" else families.config(kind)
    plain, cache = DynamicCache(config=config), growing_cache(config)
    assert type(cache) is DynamicCache
    assert can_forget(cache) == can_forget(plain) == (kind != "olmo_hybrid")
    for layer, same in zip(cache.layers, plain.layers, strict=True):
        assert type(layer) is (GrowingLayer if type(same) is DynamicLayer else type(same))


class _KeyHeads(TorchFunctionMode):
    """A record of the number of heads of all keys that attention gets."""

    def __init__(self) -> None:
        super().__init__()
        self.heads: list[int] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is scaled_dot_product_attention:
            self.heads.append(args[1].shape[1])
        return function(*args, **(kwargs or {}))


def continued_logits(model: PreTrainedModel, tokens: Tensor, count: int) -> Tensor:
    text = ReadText(model)
    text.read(tokens[:, :-count])
    return text.logits(tokens[:, -count:])


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("count", [2, 7, FEW])
@torch.inference_mode()
def test_a_few_tokens_read_shared_keys_in_place(family: str, count: int) -> None:
    """And get the logits that transformers' copies of the keys give."""
    model = families.build(family, **(WINDOW if family == "mistral" else {}))
    tokens = families.tokens(2, FEW + 20)
    with _KeyHeads() as record:
        logits = continued_logits(model, tokens, count)
    assert set(record.heads[-2:]) == {2}
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward
    torch.testing.assert_close(logits, families.logits(model, tokens)[:, -count:], rtol=1e-4, atol=1e-3)


def test_an_attention_that_is_registered_afterwards_is_used() -> None:
    model, tokens, calls = families.build("llama"), families.tokens(1, 40), []

    def record(*inputs: Any, **options: Any) -> Any:
        calls.append(len(inputs))
        return sdpa_attention_forward(*inputs, **options)

    continued_logits(model, tokens, 3)
    AttentionInterface.register("sdpa", record)
    try:
        continued_logits(model, tokens, 3)
    finally:
        AttentionInterface.register("sdpa", sdpa_attention_forward)
    assert len(calls) == 2 * model.config.num_hidden_layers
