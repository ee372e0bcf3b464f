"""GGUF files of tiny random models."""

from __future__ import annotations

from pathlib import Path

import families
import numpy as np
from gguf import MODEL_ARCH_NAMES, GGUFReader, GGUFWriter, get_tensor_name_map
from transformers import PreTrainedModel

from longrope.export.gguf.convert import export_gguf
from longrope.export.gguf.vocabulary import add_vocabulary
from longrope.models.load import load_tokenizer
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling

TOKENIZER = load_tokenizer("tiny")


def model(family: str = "llama", **fields: object) -> PreTrainedModel:
    return families.build(family, **{"sliding_window": None, "vocab_size": len(TOKENIZER), **fields})


def plain(path: Path, change: dict[str, object] | None = None) -> Path:
    """A GGUF of a plain model: ours without what ours adds."""
    made = model()
    held = Extension.of(Rope.of(made), Scaling.identity(Rope.of(made)))
    export_gguf(made, TOKENIZER, held, path.with_suffix(".ours"), outtype="q8_0")
    reader, writer, change = GGUFReader(path.with_suffix(".ours")), GGUFWriter(path, "llama"), change or {}
    for name, field in reader.fields.items():
        value = change.get(name, field.contents())
        if value is not None and not name.startswith(("GGUF.", "general.architecture", "llama.rope.scaling")):
            writer.add_key_value(name, value, field.types[0], field.types[-1] if field.types[1:] else None)
    for name, value in change.items():
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float) and "rope.scal" in name:
            writer.add_float32(name, value)
        elif isinstance(value, int) and "rope.scal" in name:
            writer.add_uint32(name, value)
        elif isinstance(value, np.ndarray):
            writer.add_tensor(name, value)
    for one in reader.tensors:
        if "rope" not in one.name:
            writer.add_tensor(one.name, one.data, raw_dtype=one.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


ARCHITECTURES = {"gemma3_text": "gemma3", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe"}


def of_model(path: Path, made: PreTrainedModel, keys: dict[str, object] | None = None) -> Path:
    """A GGUF of a model as llama.cpp's converter writes it, also of the types that we do not export.

    Args:
        path: File to write.
        made: Model in float32.
        keys: Further keys without the architecture's prefix, and tensors.
    """
    config = made.config
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    writer = GGUFWriter(path, architecture)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = Rope.of(made)
    shape = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": rope.dim,
        "rope.freq_base": rope.base,
        "vocab_size": config.vocab_size,
    }
    if getattr(config, "sliding_window", None):
        shape["attention.sliding_window"] = config.sliding_window
    tensors = {}
    for name, value in {**shape, **(keys or {})}.items():
        if isinstance(value, np.ndarray):
            tensors[name] = value
        elif isinstance(value, str):
            writer.add_string(f"{architecture}.{name}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"{architecture}.{name}", value)
        else:
            writer.add_float32(f"{architecture}.{name}", value)
    writer.add_string("general.name", "random")
    add_vocabulary(writer, TOKENIZER, config.to_dict())
    names = get_tensor_name_map(next(a for a, n in MODEL_ARCH_NAMES.items() if n == architecture), 100)
    for name, tensor in made.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads is not None and architecture == "llama":
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)
        if architecture.startswith("gemma") and "norm" in name:
            tensor = tensor + 1
        tensors[names.get_name(name, (".weight", ".bias"))] = tensor.float().numpy()
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
