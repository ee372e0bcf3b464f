"""A GGUF file with factors added; the rest is copied bit for bit."""

from __future__ import annotations

from pathlib import Path

from longrope.export.gguf.scaling import add_keys, factor_tensors, refuse_architecture, scaling_keys, write_gguf
from longrope.export.hf_config import for_mode
from longrope.formats.gguf import FREQS, LONG, SHORT
from longrope.formats.gguf_file import architecture_keys, open_gguf
from longrope.formats.gguf_header import read_header
from longrope.formats.gguf_split import refuse_split
from longrope.models.load import load_config
from longrope.rope import Rope
from longrope.scaling import Extension, check_rope


def extend_gguf(
    source: Path, extension: Extension, path: Path, *, mode: str = "static", overwrite: bool = False
) -> Extension:
    """Copy a GGUF file and add factors; its quantised weights stay as they are.

    Args:
        source: GGUF file of a model. Its own rope scaling, if it has one, is replaced by the products of both factors.
        extension: Factors to add, for the model's rope.
        path: File to write; it appears whole or not at all.
        mode: ``static`` (the long factors at every length) or ``dual`` (the short ones in contexts of up to L0).
        overwrite: Whether an existing file is replaced.

    Returns:
        The extension as the file holds it.

    Raises:
        LongRopeError: llama.cpp cannot run this architecture with factors, or the source is broken, is for another rope
            or carries a scaling that longrope does not read, or the file cannot be written.
    """
    from gguf import GGUFValueType

    written = for_mode(extension, mode)
    refuse_split(source)
    reader = open_gguf(source)
    architecture, _ = architecture_keys(read_header(source))
    refuse_architecture(architecture, written)
    check_rope(extension, Rope.of(load_config(str(source))), str(source))
    keys, tensors = scaling_keys(written, architecture), factor_tensors(written)
    replaced = (f"{architecture}.rope.scaling.", f"{architecture}.rope.scale_linear", "general.architecture", "GGUF.")
    with write_gguf(path, architecture, written, overwrite=overwrite) as writer:
        if "general.alignment" in reader.fields:
            writer.data_alignment = reader.alignment
        for name, field in reader.fields.items():
            is_empty = field.types[:1] == [GGUFValueType.ARRAY] and not field.data  # which gguf-py cannot write
            if name not in keys and not name.startswith(replaced) and not is_empty:
                element_type = field.types[-1] if field.types[1:] else None
                writer.add_key_value(name, field.contents(), field.types[0], element_type)
        add_keys(writer, keys)
        for name, factors in tensors.items():
            writer.add_tensor(name, factors)
        for tensor in (tensor for tensor in reader.tensors if tensor.name not in (FREQS, LONG, SHORT)):
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return written
