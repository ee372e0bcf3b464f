"""Write a checkpoint that ``AutoModelForCausalLM.from_pretrained`` loads with the factors in place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longrope.engines.guide import serving_guide
from longrope.errors import LongRopeError
from longrope.export.hf_config import config_fields, for_mode
from longrope.export.model_card import card
from longrope.export.tokenizer import save_tokenizer
from longrope.models.rotary_slot import find_rotary_slot
from longrope.scaling import Extension, check_rope
from longrope.storage.atomic import write_json, write_text
from longrope.storage.lock import claim_output


def export_huggingface(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    extension: Extension,
    folder: Path,
    *,
    mode: str = "static",
    name: str = "model",
    overwrite: bool = False,
) -> Extension:
    """Write weights, tokenizer, generation config, ``config.json``, ``extension.json``, model card and ``SERVING.md``.

    Args:
        model: the plain model, unpatched.
        tokenizer: its tokenizer.
        extension: what it is extended with.
        folder: made whole or not at all.
        mode: ``static`` (the long factors at every length: alike in every engine) or ``dual`` (short ones up to L0).
        name: of the model, for the card.
        overwrite: replace the folder if it exists, once the new one is whole.

    Returns:
        The extension as the checkpoint holds it.

    Raises:
        LongRopeError: if a config cannot express the extension, or the folder cannot be written.
    """
    held = for_mode(extension, mode)
    check_rope(held, find_rotary_slot(model).rope)
    folder = folder.resolve()
    run = any((folder / name).exists() for name in ("plan.toml", "search-0.jsonl"))  # these have an extension.json too
    if overwrite and folder.is_dir() and any(folder.iterdir()) and (run or not (folder / "extension.json").is_file()):
        raise LongRopeError(f"{folder} is no checkpoint that longrope wrote; choose another output with -o")
    claim_output(folder, overwrite=overwrite, folder=True)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        config_fields(model.config.to_dict(), held)
        save_tokenizer(tokenizer, temporary)  # before the large files: it may be refused
        model.save_pretrained(temporary)
        config = config_fields(json.loads((temporary / "config.json").read_text(encoding="utf-8")), held)
        write_json(temporary / "config.json", config)
        write_text(temporary / "extension.json", held.to_json())
        write_text(temporary / "README.md", card(held, mode, name))
        write_text(temporary / "SERVING.md", serving_guide(config, held, mode, folder.name))
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LongRopeError(f"cannot write {folder}: {reason}; choose another output with -o") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return held
