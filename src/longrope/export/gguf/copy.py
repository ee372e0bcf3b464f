"""A GGUF file with factors added, from one without: everything else is copied bit for bit."""

from __future__ import annotations

from pathlib import Path

from longrope.export.gguf.scaling import add_keys, factor_tensors, refuse_architecture, scaling_keys, written
from longrope.export.hf_config import for_mode
from longrope.formats.gguf import open_gguf, plain_rope, read
from longrope.scaling import Extension, check_rope


def extend_gguf(
    source: Path, extension: Extension, path: Path, *, mode: str = "static", overwrite: bool = False
) -> Extension:
    """Copy a GGUF file and add the factors; its quantised weights stay as they are.

    Args:
        source: of a plain model.
        extension: what it is extended with.
        path: of the file to write, whole or not at all.
        mode: ``static`` (the long factors at every length) or ``dual`` (short ones in contexts of up to L0).
        overwrite: replace the file if it exists.

    Returns:
        The extension as the file holds it.

    Raises:
        LongRopeError: if llama.cpp cannot run this architecture with factors, the file carries a scaling already,
            is made for another geometry or broken, or the place cannot be written.
    """
    held = for_mode(extension, mode)
    reader = open_gguf(source)
    architecture = read(reader, "general.architecture", source)
    refuse_architecture(architecture)
    rope = plain_rope(reader, source)
    check_rope(held, rope, str(source))
    keys, tensors = scaling_keys(held, architecture), factor_tensors(held)
    with written(path, architecture, overwrite=overwrite) as writer:
        if "general.alignment" in reader.fields:
            writer.data_alignment = reader.alignment
        for name, field in reader.fields.items():
            ours = name in keys or name.startswith(
                (f"{architecture}.rope.scaling.", f"{architecture}.rope.scale_linear")
            )
            if not ours and name != "general.architecture" and not name.startswith("GGUF."):
                writer.add_key_value(
                    name, field.contents(), field.types[0], field.types[-1] if field.types[1:] else None
                )
        add_keys(writer, keys)
        for name, factors in tensors.items():
            writer.add_tensor(name, factors)
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return held
