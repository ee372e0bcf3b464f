"""Save a tokenizer so that transformers 4 and engines built on it read it too."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from longrope.errors import LongRopeError
from longrope.storage.atomic import write_json


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """``save_pretrained``, with the two spellings of transformers 5 that version 4 stops at put into version 4's.

    Raises:
        OSError: if the folder cannot be written.
        LongRopeError: if transformers does not write this one.
    """
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the package tokenizers raises nothing narrower
        if "(os error" in str(error):
            raise OSError(str(error)) from None
        raise LongRopeError(f"the tokenizer cannot be written: {error}") from error
    path = folder / "tokenizer_config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    if fields.get("tokenizer_class") == "TokenizersBackend":
        fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(fields.get("extra_special_tokens"), list):
        fields["additional_special_tokens"] = fields.pop("extra_special_tokens")
    write_json(path, fields)
