"""Save a tokenizer so that transformers 4 and engines built on it read it too."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from longrope.errors import LongRopeError
from longrope.formats.lengths import raised
from longrope.storage.atomic import write_json, write_text


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, length: int = 0) -> None:
    """Save a tokenizer, with two fields spelled as transformers 4 reads them, which stops at version 5's.

    Args:
        tokenizer: Tokenizer of the model.
        folder: Folder to write.
        length: L in tokens, below which the saved tokenizer does not cut a text.

    Raises:
        OSError: The folder cannot be written.
        LongRopeError: transformers cannot write this tokenizer.
    """
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the package tokenizers raises nothing narrower
        if "(os error" in str(error):
            raise OSError(str(error)) from None
        raise LongRopeError(f"tokenizer: transformers cannot write it ({error}). Give a fast tokenizer.") from error
    path = folder / "tokenizer_config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    if fields.get("tokenizer_class") == "TokenizersBackend":
        fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(fields.get("extra_special_tokens"), list):
        fields["additional_special_tokens"] = fields.pop("extra_special_tokens")
    write_json(path, raised(fields, path.name, length))
    _raise_truncation(folder / "tokenizer.json", length)


def _raise_truncation(path: Path, length: int) -> None:
    """Let the limit to which a fast tokenizer cuts every text be at least ``length`` tokens."""
    if not path.is_file():
        return
    fields = json.loads(path.read_text(encoding="utf-8"))
    truncation = fields.get("truncation")
    if truncation and truncation.get("max_length", length) < length:
        fields["truncation"] = {**truncation, "max_length": length}
        write_text(path, json.dumps(fields, ensure_ascii=False, indent=2))
