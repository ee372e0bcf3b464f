"""The keys and tensors from which llama.cpp reads the factors, and the file around them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longrope.engines.registry import LLAMA_CPP_YARN, llama_cpp_attention
from longrope.errors import LongRopeError
from longrope.export.hf_config import yarn_fields
from longrope.formats.gguf import LONG, SHORT, extension_of_gguf
from longrope.scaling import Extension
from longrope.storage.lock import claim_output

if TYPE_CHECKING:
    from gguf import GGUFWriter

RUNTIMES = ("llama", "phi3")  # llama.cpp's architectures that read the factors, each tested


def factor_tensors(extension: Extension) -> dict[str, np.ndarray]:
    """Return the long and the short factors by their tensor names; llama.cpp divides the frequencies by them."""
    sets = {LONG: extension.long, SHORT: extension.short}
    return {name: np.array(scaling.factors, dtype=np.float32) for name, scaling in sets.items()}


def scaling_keys(extension: Extension, architecture: str) -> dict[str, str | int | float]:
    """Return the keys that go with `factor_tensors`."""
    scaling = {
        "type": "longrope",
        "original_context_length": extension.rope.original_length,
        "attn_factor": extension.long.attention_factor,
    }
    keys = {f"{architecture}.rope.scaling.{name}": value for name, value in scaling.items()}
    return {f"{architecture}.context_length": extension.length, **keys}


def add_keys(writer: GGUFWriter, keys: dict[str, str | int | float]) -> None:
    """Add keys, each with the type that llama.cpp expects: uint32, float32 or string."""
    for key, value in keys.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_float32(key, value)


def refuse_architecture(architecture: str, extension: Extension) -> None:
    """Raise unless llama.cpp computes with the factors in an architecture.

    Raises:
        LongRopeError: It does not, or this is not tested. For a YaRN, the message has the options of llama.cpp.
    """
    if architecture in RUNTIMES:
        return
    yarn = yarn_fields(extension)
    remedy = "Serve this model from a Hugging Face export, or search with the parametrization yarn."
    if yarn is not None:
        attention = llama_cpp_attention(architecture, yarn.get("attn_factor", 1.0))
        numbers = {**yarn, "original": extension.rope.original_length, "attention": attention}
        options = LLAMA_CPP_YARN.format(**numbers, length=extension.length)
        remedy = f"These factors are a YaRN, which llama.cpp computes for a plain GGUF file of the model: {options}."
    raise LongRopeError(
        f"architecture = {architecture!r}: llama.cpp ignores the factors of most architectures or rejects a file, "
        f"and only {' and '.join(RUNTIMES)} are tested. {remedy}"
    )


@contextmanager
def write_gguf(path: Path, architecture: str, written: Extension, *, overwrite: bool) -> Iterator[GGUFWriter]:
    """Yield a writer whose file appears at ``path`` when the block ends without an error, and otherwise not at all.

    Args:
        path: File to write.
        architecture: Name of the model type in llama.cpp.
        written: Factors that the file must hold when it is reopened.
        overwrite: Whether an existing file is replaced.

    Raises:
        LongRopeError: The file cannot be written, the disk is full, or the reopened file holds something else.
    """
    from gguf import GGUFWriter

    claim_output(path, overwrite=overwrite)
    temporary = path.with_name(f".{path.name}.tmp")
    writer = GGUFWriter(temporary, architecture)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield writer
        writer.flush()
        writer.close()
        _check_written(temporary, written, path)
        temporary.replace(path)
    except OSError as error:
        raise LongRopeError(f"cannot write {path}: {error.strerror or error}. Choose another output.") from None
    finally:
        for file in writer.fout or ():
            file.close()
        temporary.unlink(missing_ok=True)


def _check_written(file: Path, written: Extension, output: Path) -> None:
    """Raise unless a file is whole and holds an extension."""
    reopened = extension_of_gguf(file)
    same_base = math.isclose(reopened.rope.base, written.rope.base, rel_tol=1e-6)
    sizes = [
        (extension.rope.dim, extension.rope.original_length, extension.length) for extension in (reopened, written)
    ]
    if not same_base or sizes[0] != sizes[1]:
        raise _refused(output, f"is for {reopened.rope} and {reopened.length} tokens")
    for name, expected, scaling in (("short", written.short, reopened.short), ("long", written.long, reopened.long)):
        if not np.allclose(expected.factors, scaling.factors, rtol=1e-6):
            raise _refused(output, f"has other {name} factors ({scaling.factors[0]:.6g} … {scaling.factors[-1]:.6g})")
        if not math.isclose(expected.attention_factor, scaling.attention_factor, rel_tol=1e-6):
            raise _refused(output, f"has the attention factor {scaling.attention_factor:.7g}")


def _refused(output: Path, fault: str) -> LongRopeError:
    return LongRopeError(
        f"output = {output}: the file, reopened, {fault}. Nothing was written. longrope cannot export this model. "
        "Please report it with the model's config.json."
    )
