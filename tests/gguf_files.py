"""GGUF files of tiny random models."""

from __future__ import annotations

from pathlib import Path

import families
import numpy as np
from gguf import GGUFReader, GGUFWriter
from transformers import PreTrainedModel

from longrope.export.gguf.convert import export_gguf
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
