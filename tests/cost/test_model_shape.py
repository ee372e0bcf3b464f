"""The sizes of models whose layers differ, or keep something else than keys and values, are those of transformers."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import all_types
import families
import pytest
import torch
from transformers import AutoConfig, LlamaForCausalLM, PreTrainedConfig

from longrope.cost import device_speed, peak_memory, timing, training_speed
from longrope.cost.model_shape import ModelShape
from longrope.longcontext import token_losses, training_loss
from longrope.longcontext.chunked_sum import sum_over_chunks

KINDS = [
    "deepseek_v3",  # a cache of latents
    "longcat_flash",  # two attentions a layer
    "qwen3_5",  # linear attention, beside a model of images
    "lfm2_moe",  # convolutions
    "bamba",
    "gemma4_text",  # heads of two sizes
    "falcon",  # one head of keys for all queries
    "llama4_text",
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_a_cache(kind: str) -> None:
    check_cache(all_types.build(kind))


def test_the_bytes_of_a_cache_that_layers_share() -> None:
    kinds = ["sliding_attention", "full_attention"] * 2
    config: dict[str, Any] = all_types.small_config("gemma3n_text").to_dict()
    config |= {"num_hidden_layers": 4, "layer_types": kinds, "num_kv_shared_layers": 2, "intermediate_size": 96}
    check_cache(families.from_config(AutoConfig.for_model(**{**config, "activation_sparsity_pattern": None})))


def check_cache(model: Any, length: int = 24) -> None:
    tokens = torch.randint(3, all_types.VOCABULARY, (1, length))
    with torch.inference_mode():
        cache = model(input_ids=tokens, use_cache=True).past_key_values
    pairs = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers]
    kept = sum(tensor.nbytes for pair in pairs for tensor in pair if tensor is not None)
    assert peak_memory.of_cache(ModelShape.of(model.config, "float32"), length) == kept


def test_attention_of_published_models() -> None:
    """DeepSeek-V3: 128 heads with keys of 192 and values of 128; its cache has 512 + 64 a token and layer."""
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "vocab_size": 64, "n_routed_experts": 8, "q_lora_rank": 64}
    shape = ModelShape.of(AutoConfig.for_model("deepseek_v3", num_attention_heads=128, **sizes))
    assert (shape.query_features, shape.kv_features) == (128 * 160, 128 * 320)
    assert shape.cached_features == (576,)


def test_only_what_reads_text_multiplies_a_token() -> None:
    config = all_types.small_config("gemma3")
    whole, text = ModelShape.of(config), ModelShape.of(config.get_text_config())
    assert whole.parameters > text.parameters
    assert (whole.matmul_parameters, whole.lora_features) == (text.matmul_parameters, text.lora_features)


def test_embeddings_of_every_layer_do_not_multiply_a_token() -> None:
    def products(vocabulary: int) -> int:
        config: Any = all_types.small_config("gemma4_text")
        config.vocab_size_per_layer_input = vocabulary
        return ModelShape.of(config).matmul_parameters

    assert products(128) == products(4096)


@pytest.mark.parametrize(("kind", "field"), [("aria_text", "moe_topk"), ("gemma4_text", "top_k_experts")])
def test_active_experts_under_other_names(kind: str, field: str) -> None:
    def products(active: int) -> int:
        config: Any = all_types.small_config(kind)
        config.moe_num_experts = config.num_experts = 8
        config.moe_intermediate_size = 32
        config.enable_moe_block = True
        setattr(config, field, active)
        return ModelShape.of(config).matmul_parameters

    step = products(2) - products(1)
    assert step > 0
    assert products(8) - products(1) == 7 * step


def test_active_experts_of_each_layer() -> None:
    """As the config of Hunyuan-A13B has them."""
    config: Any = all_types.small_config("hunyuan_v1_moe")
    one_number, layers = ModelShape.of(config), config.num_hidden_layers
    config.moe_topk = [config.moe_topk] * layers
    config.moe_intermediate_size = [config.intermediate_size] * layers
    assert ModelShape.of(config) == one_number


@pytest.mark.parametrize(
    ("fields", "device", "bits"),
    [
        ({"quant_method": "gptq", "bits": 4}, "cpu", 4.5),
        ({"quant_method": "awq", "bits": 4}, "cuda", 4.5),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "cuda", 8.5),
        ({"quant_method": "fp8"}, "cuda:0", 8.5),
        ({"quant_method": "fp8"}, "cpu", 16),  # dequantised there
        ({"quant_method": "compressed-tensors"}, "cuda", 16),  # unpacked before the first pass
    ],
)
def test_the_bytes_of_quantised_weights(
    fields: dict[str, Any], device: str, bits: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peak_memory, "activation_budget", lambda _: float("inf"))
    config: PreTrainedConfig = families.config("llama")
    plain = ModelShape.of(config, "bfloat16", device)
    config.quantization_config = fields  # type: ignore[attr-defined]
    shape = ModelShape.of(config, "bfloat16", device)
    linear = plain.matmul_parameters - families.VOCABULARY * config.hidden_size  # the head is not quantised
    assert plain.weight_bytes == 2 * plain.parameters
    assert plain.weight_bytes - shape.weight_bytes == pytest.approx(linear * (16 - bits) / 8, abs=1)
    passes = [peak_memory.of_pass(each, 64, gradient=False) for each in (plain, shape)]
    assert passes[0] - passes[1] == plain.weight_bytes - shape.weight_bytes


@pytest.mark.parametrize("at_once", [families.VOCABULARY * 40, families.VOCABULARY * 300])
def test_the_head_is_timed_on_chunks_of_as_many_tokens_as_in_training(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, list[int]] = {"timed": [], "trained": []}

    def spied(name: str) -> Callable[..., torch.Tensor]:
        def run(*arguments: Any) -> torch.Tensor:
            sizes[name].append(arguments[-1])
            return sum_over_chunks(*arguments)

        return run

    monkeypatch.setattr(timing, "ENOUGH", 0.0)
    monkeypatch.setattr(token_losses, "LOGITS_AT_ONCE", at_once)
    monkeypatch.setattr(training_speed, "sum_over_chunks", spied("timed"))
    monkeypatch.setattr(training_loss, "sum_over_chunks", spied("trained"))
    config: Any = families.config("llama")
    device_speed.measure_device_speed(config, device="cpu", dtype="float32", training=True)
    tokens = torch.arange(128)[None] % families.VOCABULARY
    model = training_loss.use_chunked_loss(LlamaForCausalLM(config))
    model(input_ids=tokens, labels=tokens)
    assert set(sizes["timed"]) == set(sizes["trained"]) == {at_once // families.VOCABULARY}


def test_a_model_that_mixed_precision_does_not_train_counts_by_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ENOUGH", 0.0)
    config = all_types.small_config("dbrx")  # adds bfloat16 to float32 in place
    found = device_speed.measure_device_speed(config, device="cpu", dtype="bfloat16", training=True)
    assert found.training == 1.0
    if find_spec("peft"):
        assert found.adapters > 0  # beside weights in bfloat16 all is bfloat16
        assert found.adapters != 1.0


@pytest.mark.parametrize("kind", ["modernbert-decoder", "gemma3n_text", "gemma4", "emu3", "mllama"])
def test_the_speed_of_models_that_are_not_easily_made_small(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ENOUGH", 0.0)
    config = all_types.small_config(kind)
    if kind == "gemma3n_text":  # as many layers of Gemma 3n share keys and values as its timed model has
        sizes = {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "intermediate_size": 96}
        kinds = ["sliding_attention", "full_attention"] * 2
        fields: dict[str, Any] = config.to_dict() | sizes | {"layer_types": kinds, "activation_sparsity_pattern": None}
        config = AutoConfig.for_model(**fields)
    found = device_speed.measure_device_speed(config, device="cpu", dtype="float32", training=True)
    assert min(found.linear, found.training, found.adapters) > 0
