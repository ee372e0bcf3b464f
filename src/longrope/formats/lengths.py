"""The places where a checkpoint holds its length in tokens; readers take one of them, or the smallest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from longrope.formats.checkpoint_file import find_file
from longrope.formats.rope_fields import ORIGINAL
from longrope.rope import full_attention_fields
from longrope.units import token_count

OTHER_CONFIG_FIELDS = (
    "max_sequence_length",
    "model_max_length",
    "seq_length",
    "seq_len",
    "max_seq_len",
    "max_seq_length",
    "n_positions",
    "n_ctx",
    "max_context_length",
)
FILES: Mapping[str, tuple[str, ...]] = {
    "config.json": ("max_position_embeddings", *OTHER_CONFIG_FIELDS),
    "tokenizer_config.json": ("model_max_length", "max_length"),
    "generation_config.json": ("max_length",),
}
DECIDED = "longrope_original_length"  # config attribute: L0 that the user decided, of a checkpoint with a scaling
UNLIMITED = 10**15  # transformers writes 1e30 for a tokenizer without a limit


def lengths_in(fields: Mapping[str, Any], names: Iterable[str]) -> dict[str, int]:
    """Return the lengths in tokens that some fields of a file hold, by name.

    >>> lengths_in({"n_ctx": 64, "seq_length": None}, ["n_ctx", "seq_length", "max_length"])
    {'n_ctx': 64}
    """
    values = {name: fields.get(name) for name in names}
    return {
        name: int(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < UNLIMITED
    }


def raised(fields: Mapping[str, Any], file: str, length: int) -> dict[str, Any]:
    """Return the fields of a file of a checkpoint, where each length below ``length`` becomes ``length``.

    Args:
        fields: Content of the file.
        file: Name of the file, a key of `FILES`.
        length: L in tokens.
    """
    return {**fields, **{name: length for name, value in lengths_in(fields, FILES[file]).items() if value < length}}


def checkpoint_lengths(config: Any) -> dict[str, int]:
    """Return every length in tokens that a checkpoint holds, by file and field.

    Args:
        config: Config of transformers, loaded from the checkpoint.
    """
    lengths = {}
    for file, names in FILES.items():
        fields = config.get_text_config().to_dict() if file == "config.json" else _content(config.name_or_path, file)
        lengths |= {f"{file}: {name}": value for name, value in lengths_in(fields, names).items()}
    return lengths


def disagreement(lengths: Mapping[str, int], original_length: int) -> str | None:
    """Return a sentence that names the lengths of a checkpoint if they differ, else None.

    Args:
        lengths: Lengths in tokens, as `checkpoint_lengths` returns them.
        original_length: L0 in tokens, as longrope reads it.
    """
    if len(set(lengths.values())) < 2:
        return None
    fields = ", ".join(f"{name} = {value:,}" for name, value in lengths.items())
    return (
        f"this checkpoint names several lengths ({fields}). longrope takes L0 = {original_length:,}; some engines take "
        "the smallest. If the model was trained on another length, decide it with original_length."
    )


def set_original_length(config: Any, length: int | str) -> None:
    """Set the length that a config names as L0, where the fields of a checkpoint disagree.

    Args:
        config: Config of transformers, which is changed.
        length: L0 in tokens.

    Raises:
        LongRopeError: The length is below 2.
    """
    text = config.get_text_config()
    length = token_count("original_length", length)
    parameters = full_attention_fields(getattr(text, "rope_parameters", None))
    if parameters.get("rope_type", "default") != "default":  # whose own fields decide what it computes
        setattr(text, DECIDED, length)
        return
    text.max_position_embeddings = length
    if getattr(text, ORIGINAL, None) is not None:
        setattr(text, ORIGINAL, length)
    if isinstance(parameters, dict) and parameters.get(ORIGINAL) is not None:
        parameters[ORIGINAL] = length


def _content(source: str, file: str) -> Mapping[str, Any]:
    """Return the content of a JSON file of a checkpoint; empty if there is none that can be read."""
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        return {}  # a folder of GGUF files
    path = find_file(source, file)
    try:
        fields = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, Mapping) else {}
