from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import families
import pytest
import torch
from transformers import AutoConfig, DynamicCache
from transformers.cache_utils import DynamicLayer

from longrope.cost import memory_check, peak_memory
from longrope.cost.memory_check import Placement
from longrope.cost.model_shape import ModelShape
from longrope.errors import LongRopeError
from longrope.models.cache import cache_argument
from longrope.models.growing_cache import growing_cache
from longrope.models.load import load_config


def check(length: int, batch: int, workers: int = 1, processes: int = 1) -> None:
    place = Placement("auto", "cpu", workers, processes)
    memory_check.check_pass_memory(load_config("tiny"), length, place, batch=batch)


def test_what_does_not_fit_is_refused_with_what_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_check, "free_memory", lambda _: 2**30)
    check(2048, 1)
    with pytest.raises(LongRopeError, match=r"length = 1048576 takes about [\d.]+ GiB .* cpu has 1.0 GiB free") as said:
        check(2**20, 1)
    fits = str(said.value).split("about ")[2].split(" tokens")[0]
    check(int(fits.removesuffix("k")) * 1024, 1)
    with pytest.raises(LongRopeError):  # it is the longest, in steps of 1,024
        check((int(fits.removesuffix("k")) + 1) * 1024, 1)
    with pytest.raises(LongRopeError, match="with batch = 64"):
        check(2**16, 64)


@pytest.mark.parametrize("length", [1, 500, 4096, 2**20])
def test_memory_for_less_than_the_weights_or_a_few_tokens(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = ModelShape.of(load_config("tiny"), "auto")
    for fits in (0, 1, 300, 1023):
        free = peak_memory.of_pass(shape, fits, gradient=False) if fits else 2**10
        monkeypatch.setattr(memory_check, "free_memory", lambda _, free=free: free)
        if length > fits:
            said = f"about {fits} tokens fit in a pass" if fits else "the weights alone do not fit"
            with pytest.raises(LongRopeError, match=said):
                check(length, 1)


def test_workers_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    takes = peak_memory.of_pass(ModelShape.of(load_config("tiny"), "auto"), 2048, gradient=False)
    monkeypatch.setattr(memory_check, "free_memory", lambda _: 3 * takes)
    check(2048, 1, workers=3)
    with pytest.raises(LongRopeError, match=r"GiB free for each of 4 workers; .*, fewer workers"):
        check(2048, 1, workers=4)


def test_processes_of_one_pass_share_a_cpu_and_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("tiny")
    takes = peak_memory.of_pass(ModelShape.of(config, "auto"), 2048, gradient=False)
    monkeypatch.setattr(memory_check, "free_memory", lambda _: 3 * takes)
    check(2048, 1, processes=3)
    with pytest.raises(LongRopeError, match=r"GiB free for each of 4 processes; .*, fewer processes"):
        check(2048, 1, processes=4)
    monkeypatch.setattr(peak_memory, "activation_budget", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    shape, length = ModelShape.of(config, "auto", "cuda"), 2**16
    free, main = (of(shape, length, gradient=False) for of in (peak_memory.of_pass, peak_memory.moved_in_pass))
    monkeypatch.setattr(memory_check, "free_memory", lambda device: main if device == "cpu" else free)
    # of the residual stream each process moves its own part
    memory_check.check_pass_memory(config, length, Placement("auto", "cuda", processes=8))
    with pytest.raises(LongRopeError, match="of main memory, which has"):
        memory_check.check_pass_memory(config, length, Placement("auto", "cuda", workers=8))


def test_a_device_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_check, "free_memory", lambda _: None)
    check(2**30, 1)


@pytest.mark.parametrize("family", [*families.FAMILIES])
def test_the_bytes_of_a_cache_are_those_of_transformers(family: str) -> None:
    heads = {"num_key_value_heads": 4} if family == "gpt_neox" else {}  # which knows no fewer heads for keys
    model, length = families.build(family, **heads), 40
    tokens = torch.randint(3, families.VOCABULARY, (1, length))
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(tokens, use_cache=True, **{cache_argument(model): cache})
        model(tokens[:, :1], use_cache=True, **{cache_argument(model): cache})
    kept = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    held = sum(one.nbytes for layer in kept for one in (layer.keys, layer.values) if one is not None)
    shape = ModelShape.of(model.config, "float32")
    moved = sum(window is not None and window <= length for window in shape.windows)
    # of its window a layer keeps all but one
    assert peak_memory.of_cache(shape, length + 1) - held == moved * shape.kv_features * 4


def test_a_cache_that_does_not_fit_is_refused_with_what_does(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("tiny")
    free = peak_memory.of_cache(ModelShape.of(config, "float32"), 3 * 1024 * 17 // 16)  # with room to grow
    monkeypatch.setattr(memory_check, "free_memory", lambda _: free)
    check = partial(memory_check.check_cache_memory, config, dtype="float32", device="cpu")
    check(3 * 1024, cached=0)
    check(4 * 1024, cached=1088)  # what is held is not asked for again
    with pytest.raises(LongRopeError, match=r"3073 tokens of prompt and answer need 0.0 GiB .* about 3k fit"):
        check(3 * 1024 + 1, cached=0)
    monkeypatch.setattr(memory_check, "free_memory", lambda _: 0)
    with pytest.raises(LongRopeError, match="not one fits"):
        check(1, cached=0)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@torch.inference_mode()
def test_less_memory_than_a_growing_cache_takes_is_refused(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.build(family)
    check = partial(memory_check.check_cache_memory, model.config, cached=0, dtype="float32", device="cpu")
    cache, read, held = growing_cache(model.config), 0, 0
    for tokens in (40, 30, 1, 1200):
        model(families.tokens(1, tokens), past_key_values=cache, use_cache=True)
        read += tokens
        layers: list[Any] = cache.layers
        pairs = [
            (layer.keys, layer.values) if layer.is_sliding else (layer.key_room, layer.value_room) for layer in layers
        ]
        held = sum(tensor.nbytes for pair in pairs for tensor in pair)
        monkeypatch.setattr(memory_check, "free_memory", lambda _, free=held - 1: free)
        with pytest.raises(LongRopeError, match=f"{read} tokens of prompt and answer need"):
            check(read)
    monkeypatch.setattr(memory_check, "free_memory", lambda _: held * 1.01)
    check(read)


@pytest.mark.parametrize(("kind", "fields"), [("falcon", {"alibi": False}), ("gpt_neox_japanese", {})])
def test_models_that_call_their_mlp_otherwise(kind: str, fields: dict[str, object]) -> None:
    config = AutoConfig.for_model(kind, hidden_size=64, num_attention_heads=4, num_hidden_layers=2, **fields)
    assert ModelShape.of(config).mlp_features == 4 * 64


def test_a_model_without_a_causal_language_model_is_refused_by_name() -> None:
    with pytest.raises(LongRopeError, match="'vit' is not a causal language model"):
        memory_check.check_pass_memory(AutoConfig.for_model("vit"), 64, Placement("auto", "cpu"))


def test_what_waits_in_main_memory_must_fit_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient of 64K tokens on a card that may keep 16 MiB of the inputs of layers."""
    config, room_there, length = load_config("tiny"), 2**24, 2**16
    monkeypatch.setattr(peak_memory, "activation_budget", lambda _: room_there)
    shape = ModelShape.of(config, "float32", "cuda:0")
    inputs = 4 * length * 256 * 4
    assert peak_memory.moved_in_pass(shape, length, gradient=True) == inputs - room_there
    assert peak_memory.moved_in_pass(shape, length, gradient=False) == length * 256 * 4  # the stream as a whole
    takes = peak_memory.of_pass(shape, length, gradient=True)
    slim, long = replace(shape, kv_features=32), 2**20  # the moment before the embeddings move is the peak
    embedded = slim.parameters * 4 + long * (256 + slim.phase_features) * 4
    assert peak_memory.of_pass(slim, long, gradient=False) == embedded
    monkeypatch.setattr(peak_memory, "activation_budget", lambda _: float("inf"))
    assert peak_memory.of_pass(shape, length, gradient=True) - takes == inputs - room_there
    monkeypatch.setattr(peak_memory, "activation_budget", lambda _: room_there)
    main = inputs - room_there
    check_gradient = partial(
        memory_check.check_pass_memory, config, length, Placement("float32", "cuda:0"), kind="gradient"
    )
    monkeypatch.setattr(memory_check, "free_memory", lambda device: main if device == "cpu" else takes)
    check_gradient()
    monkeypatch.setattr(memory_check, "free_memory", lambda device: main - 1 if device == "cpu" else takes)
    with pytest.raises(LongRopeError, match=r"GiB of main memory, which has 0\.2; about 63k tokens fit in a gradient"):
        check_gradient()
    monkeypatch.setattr(memory_check, "free_memory", lambda device: main if device == "cpu" else takes - 1)
    with pytest.raises(LongRopeError, match="about 63k tokens fit in a gradient"):
        check_gradient()
