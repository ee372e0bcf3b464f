"""Save a tokenizer so that transformers 4 and engines built on it read it too."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from longrope.errors import LongRopeError
from longrope.storage.atomic import write_json


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer, with two fields spelled as transformers 4 reads them, which stops at version 5's.

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
    write_json(path, fields)
