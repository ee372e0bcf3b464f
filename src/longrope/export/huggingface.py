"""Write a checkpoint that ``AutoModelForCausalLM.from_pretrained`` loads with its factors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from longrope.engines.guide import serving_guide
from longrope.errors import LongRopeError
from longrope.export.carried_factors import carries
from longrope.export.hf_config import config_fields, for_mode, refuse_quantized
from longrope.export.model_card import model_card
from longrope.export.tokenizer import save_tokenizer
from longrope.export.verify import ExpectedLogits
from longrope.formats.checkpoint_file import find_file
from longrope.formats.lengths import raised
from longrope.models.dequantized import forget_conversions
from longrope.models.processor_files import copy_processor
from longrope.scaling import Extension
from longrope.storage.atomic import apply_umask, write_json, write_text
from longrope.storage.lock import claim_output

GENERATION = "generation_config.json"
WEIGHT_SUFFIXES = ("safetensors", "bin", "gguf")
RUN_FILES = ("plan.toml", "search-0.jsonl")  # a run has an extension.json too, but is not a checkpoint


def export_huggingface(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    extension: Extension,
    folder: Path,
    *,
    mode: str = "static",
    name: str = "model",
    overwrite: bool = False,
    check: bool = True,
) -> Extension:
    """Write weights, tokenizer, generation config, ``config.json``, ``extension.json``, model card and ``SERVING.md``.

    Args:
        model: Plain model, or one that has these factors already.
        tokenizer: Tokenizer of the model.
        extension: Factors to write, for the model's rope.
        folder: Folder to write; it appears whole or not at all.
        mode: ``static`` (the long factors at every length) or ``dual`` (the short ones up to L0).
        name: Name of the model, for the card.
        overwrite: Whether an existing checkpoint is replaced, once the new one is whole.
        check: Whether a fresh process reopens the checkpoint, and its logits are compared before it gets its name.

    Returns:
        The extension as the checkpoint holds it.

    Raises:
        LongRopeError: A config cannot express the extension, the folder cannot be written, or the checkpoint does not
            compute what the model computes with these factors.
    """
    refuse_quantized(model.config.to_dict())
    written, carried = for_mode(extension, mode), carries(model, extension, mode)
    with _new_folder(folder, overwrite=overwrite) as temporary:
        config_fields(model.config.to_dict(), written)
        expected = ExpectedLogits.of(model, extension, mode, carried=carried) if check else None
        forget_conversions(model)
        save_tokenizer(tokenizer, temporary, written.length)  # before the large files: it may be refused
        model.save_pretrained(temporary)
        apply_umask(temporary)
        copy_processor(model.config, temporary)
        _write_fields(temporary, written, mode, name, folder)
        if expected is not None:
            expected.check(temporary, folder.resolve())
    return written


def export_config(
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    extension: Extension,
    folder: Path,
    *,
    generation_config: GenerationConfig | None = None,
    mode: str = "static",
    name: str = "model",
    overwrite: bool = False,
) -> Extension:
    """Write the files of a checkpoint without its weights, which the factors do not change, and which may be quantised.

    Args:
        config: Config of the model.
        tokenizer: Tokenizer of the model.
        extension: Factors to write, for the model's rope.
        folder: Folder to write; it appears whole or not at all.
        generation_config: Generation config of a loaded model; None copies that of the config's folder or hub id.
        mode: ``static`` (the long factors at every length) or ``dual`` (the short ones up to L0).
        name: Name of the model, for the card.
        overwrite: Whether an existing export is replaced.

    Returns:
        The extension as the config holds it.

    Raises:
        LongRopeError: A config cannot express the extension, or the folder cannot be written or holds weights.
    """
    written = for_mode(extension, mode)
    _refuse_weights(folder)
    with _new_folder(folder, overwrite=overwrite) as temporary:
        config_fields(config.to_dict(), written)
        save_tokenizer(tokenizer, temporary, written.length)
        config.save_pretrained(temporary)
        if generation_config is not None:
            generation_config.save_pretrained(temporary)
        elif config.name_or_path and (path := find_file(config.name_or_path, GENERATION)):
            shutil.copyfile(path, temporary / GENERATION)
        copy_processor(config, temporary)
        _write_fields(temporary, written, mode, name, folder)
    return written


@contextmanager
def _new_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder, which gets its name when the block ends without an error.

    Raises:
        LongRopeError: The folder exists and may not be replaced, or it cannot be written.
    """
    folder = folder.resolve()
    temporary, old = folder.parent / f".{folder.name}.tmp", folder.parent / f".{folder.name}.old"
    if old.exists() and not folder.exists():  # the process was killed as it replaced it
        old.rename(folder)
    _refuse_other_folder(folder, overwrite=overwrite)
    claim_output(folder, overwrite=overwrite, folder=True)
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        yield temporary
        if folder.exists():
            folder.rename(old)
        try:
            temporary.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LongRopeError(f"cannot write {folder}: {reason}. Choose another output.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_fields(temporary: Path, written: Extension, mode: str, name: str, folder: Path) -> None:
    """Write the factors into the config of a folder, and the files that describe them."""
    _raise_generation_length(temporary / GENERATION, written.length)
    config = config_fields(json.loads((temporary / "config.json").read_text(encoding="utf-8")), written)
    write_json(temporary / "config.json", config)
    write_text(temporary / "extension.json", written.to_json())
    write_text(temporary / "README.md", model_card(written, mode, name, config))
    write_text(temporary / "SERVING.md", serving_guide(config, written, mode, folder.resolve().name))


def _raise_generation_length(path: Path, length: int) -> None:
    """Let the longest sequence of a generation config be at least ``length`` tokens."""
    if path.is_file():
        write_json(path, raised(json.loads(path.read_text(encoding="utf-8")), path.name, length))


def _refuse_weights(folder: Path) -> None:
    """Raise if a folder holds weights, which a person copies into an export without weights."""
    weights = sorted(path.name for ending in WEIGHT_SUFFIXES for path in folder.glob(f"*.{ending}"))
    if weights:
        raise LongRopeError(
            f"output = {folder}: it holds weights ({weights[0]}), which a config alone would replace. Choose another "
            "output, and copy its files over these."
        )


def _refuse_other_folder(folder: Path, *, overwrite: bool) -> None:
    """Raise if overwriting would delete a folder that is not an exported checkpoint."""
    if not overwrite or not folder.is_dir() or not any(folder.iterdir()):
        return
    is_run = any((folder / name).exists() for name in RUN_FILES)
    if is_run or not (folder / "extension.json").is_file():
        raise LongRopeError(
            f"output = {folder}: this folder is not a checkpoint that longrope wrote, so it is not replaced. "
            "Choose another output."
        )
