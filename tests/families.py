"""Tiny random models of every supported family, built in memory: L0 = 64, 128 tokens, heads of 16."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

L0, VOCABULARY, GAIN = 64, 128, 5.0
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": L0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEADS = {"head_dim": 16}
BY_LAYER = {"gemma3_text": {**HEADS, "num_hidden_layers": 6, "sliding_window": 16}, "olmo3": {"num_hidden_layers": 4}}
FAMILIES = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": HEADS,
    "phi3": {"original_max_position_embeddings": L0},
    "gemma2": HEADS,
    "smollm3": {},
    "gpt_neox": {},
    "stablelm": {},
    "starcoder2": {},
    "granite": {},
    "olmo2": {},
    "cohere": {"logit_scale": 1.0},
    "mixtral": HEADS,
    "qwen2_moe": {},
    "phi": {},
    "nemotron": {},
    "glm": HEADS,
    **BY_LAYER,
}
REFUSED = {"gpt2": "no rotary", "opt": "no rotary"}


def config(name: str, **fields: object) -> PreTrainedConfig:
    """The config of a tiny model of a family, with some fields changed."""
    return AutoConfig.for_model(name, **{**SMALL, **FAMILIES.get(name, {}), **fields})


def build(name: str, **fields: object) -> PreTrainedModel:
    """A tiny model; its weights are large enough for logits of order 1 that depend on the positions."""
    return from_config(config(name, **fields))


def from_config(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(GAIN)
    return model


def tokens(rows: int, length: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits


def tokenizer() -> PreTrainedTokenizerFast:
    """One word a token: ``t0`` to ``t127``."""
    words = Tokenizer(WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t0"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="t0")
