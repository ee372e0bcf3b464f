"""A tiny random model of every causal type that transformers knows, from its default config with small sizes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel, SiglipVisionConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from longrope.models.backbone import auto_class

L0, VOCABULARY, MOST_WEIGHTS = 64, 128, 3e7
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size": 64,
    "hidden_size_per_layer_input": 16,
    "d_model": 64,
    "n_embd": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_hidden_layers": 2,
    "n_layers": 2,
    "n_layer": 2,
    "num_layers": 2,
    "num_attention_heads": 4,
    "n_heads": 4,
    "n_head": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": L0,
    "max_seq_len": L0,
    "n_positions": L0,
    "sliding_window": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "zero_expert_num": 2,
    "ffn_hidden_size": 96,
    "expert_ffn_hidden_size": 32,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 16,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_d_ssm": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "image_size": 28,
    "patch_size": 14,
    "mm_tokens_per_image": 1,
    "num_channels": 3,
    "base_channels": 32,
    "adapter_in_dim": 64,
    "adapter_input_size": 64,
    "adapter_out_dim": 64,
    "adapter_output_size": 64,
}
MLA = {"num_key_value_heads": 4}  # every head has keys of its own
OVERRIDES: dict[str, dict[str, Any]] = {
    "dots1": {"n_shared_experts": 1, "first_k_dense_replace": 1},
    "zaya": {"num_experts_per_tok": 1},
    "moshi": {"ffn_dim": 96},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "qwen4_exp_text": {
        "indexer_budget": 32,
        "indexer_compress_ratio": 4,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
    },
    "emu3": {"vocabulary_map": {"<image>": 3, "<|extra_200|>": 4}},
    "dots3_note_text": {"head_dim": 64, "qk_nope_head_dim": 48, "per_layer_config": {1: {"qk_nope_head_dim": 48}}},
    "dots3_note_vision_encoder": {"num_hidden_layers": 42},
    "attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "zamba2": {"use_mem_rope": True, "layers_block_type": ["linear_attention", "hybrid"], "hybrid_layer_ids": [1]},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_unified_assistant": {"num_kv_shared_layers": 0},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"position_embedding_type": "rope", "layer_types": ["mamba", "attention"]},
    "mimo_v2_flash": {"head_dim": 48, "v_head_dim": 16},
    "mistral4": {  # as its default, and plain RoPE fails in transformers
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": L0,
            "llama_4_scaling_beta": 0.1,
        },
        "max_position_embeddings": 4 * L0,
        "head_dim": 32,
    },
    "hunyuan_vl_text": {"rope_parameters": {"rope_theta": 1e4, "mrope_section": [2, 2, 2, 2]}},
}


def causal_types() -> list[str]:
    """The causal model types with fields of a RoPE in their config, in order of their names."""
    return [kind for kind in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) if _has_rope(kind)]


def _has_rope(kind: str) -> bool:
    try:
        text = CONFIG_MAPPING[kind]().get_text_config()
    except Exception:  # a default config that its own class refuses, or two texts
        return False
    return bool(getattr(text, "rope_parameters", None))


def small_config(kind: str | type[PreTrainedConfig]) -> PreTrainedConfig:
    """The default config of a type with small sizes, in its parts too."""
    cls = CONFIG_MAPPING[kind] if isinstance(kind, str) else kind
    default = cls()
    fields = default.to_dict()
    small = {name: value for name, value in SIZES.items() if name in fields or name in cls.attribute_map}
    if "kv_lora_rank" in fields:
        small |= MLA
    if isinstance(getattr(cls, "head_dim", None), property):
        small.pop("head_dim", None)
    else:
        small["head_dim"] = SIZES["head_dim"]
    kinds = fields.get("layer_types")
    if kinds:
        each = list(dict.fromkeys(kinds))
        small["layer_types"] = (each + kinds)[: max(2, len(each))]
        small["num_hidden_layers"] = len(small["layer_types"])
    if cls.__name__ in ("Qwen2_5_VLTextConfig", "Glm4vTextConfig"):
        small["rope_parameters"] = default.rope_parameters | {"mrope_section": [2, 3, 3]}
    inner = {name: getattr(default, name, None) for name in cls.sub_configs}
    parts = {name: small_config(type(part)) for name, part in inner.items() if part is not None}
    return cls(**{**small, **parts, **OVERRIDES.get(cls.model_type or cls.base_config_key, {})})


def build(kind: str) -> PreTrainedModel:
    """A tiny model of a type in evaluation mode.

    Raises:
        ValueError: If its default config stays large.
    """
    config = small_config(kind)
    if kind == "gemma3n":  # its own image tower is of the package timm, which needs torchvision
        tower = small_config(SiglipVisionConfig)
        tower.vocab_size, tower.vocab_offset, tower.rms_norm_eps = 4, VOCABULARY, 1e-6
        vars(config)["vision_config"] = tower  # past the check of its class
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in auto_class(config).from_config(config).parameters())
    if weights > MOST_WEIGHTS:
        raise ValueError(f"{weights:,} weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto_class(config).from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("qk_norm.temp"):  # Zaya's gain of its keys, which begins at 0
            parameter.data.fill_(1.0)
    return model
