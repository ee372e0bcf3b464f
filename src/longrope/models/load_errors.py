"""What is wrong with a model that cannot be loaded: its name, its folder, its tokenizer, or what the folder holds."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from longrope.errors import LongRopeError, did_you_mean
from longrope.formats.checkpoint_file import find_file
from longrope.formats.hf_config import extension_of_config
from longrope.models.adapter_folder import CONFIG as ADAPTER
from longrope.models.adapter_folder import MERGEABLE, is_path
from longrope.models.quantized import kernel_error

BUILT_IN = ("tiny", "smollm2")
CONFIG = "config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\s")  # a token in base64 and its rank


@contextmanager
def explained(name: str, target: str = "", quantization: str | None = None) -> Iterator[None]:
    """Turn what transformers raises in the block into a LongRopeError that names the model.

    Args:
        name: Name of the model, as for `longrope.models.load.load`.
        target: Device that it is loaded to, for the message, such as " on cuda".
        quantization: The ``quant_method`` of its config, if its weights are quantised.
    """
    try:
        yield
    except LongRopeError:
        raise
    except Exception as error:  # each config class raises its own kinds
        reason = _first_lines(error)
        if "trust_remote_code" in str(error):
            reason = "it brings code of its own, which is never run; give a checkpoint of a model that transformers has"
        folder = Path(name) if Path(name).exists() else _snapshot(name)
        if folder is None and name not in BUILT_IN:
            check_hub_adapter(name)
            close = suggestion(name)
            hint = f"D{close[3:]}" if close else "Is it a hub id?"
            reason = f"there is no such folder or built-in model. {hint} The hub: {reason.rstrip('.')}"
            if "connect" in reason and not close:
                reason += (
                    f". Run hf download {name} --local-dir FOLDER where the hub can be reached, and give the folder"
                )
        elif folder is not None:
            check_rope_fields(name, folder, str(error))
            reason = tokenizer_error(folder, str(error)) or reason
        if quantization:
            raise kernel_error(name, quantization, target, reason) from error
        raise LongRopeError(f"model = {name!r} cannot be loaded{target}: {reason.rstrip('.')}") from error


def check_folder(name: str, folder: Path) -> None:
    """Refuse a folder that is not a checkpoint, with what it holds instead.

    Args:
        name: Name of the model, for the message.
        folder: Folder of the model, which may be absent for a hub id.

    Raises:
        LongRopeError: The folder holds an adapter, has no ``config.json``, or is a path that does not exist.
    """
    check_adapter(name, folder)
    if folder.is_dir() and not (folder / CONFIG).is_file():
        models = sorted(folder.glob("*.gguf")) or _folders_with(folder, CONFIG) or _folders_with(folder, ADAPTER)
        remedy = f"Give {' or '.join(map(str, models[-3:]))}" if models else "Give a folder that save_pretrained wrote"
        raise LongRopeError(f"model = {name!r} cannot be loaded: there is no {CONFIG} in this folder. {remedy}.")
    if not folder.is_dir() and is_path(name):
        raise LongRopeError(f"model = {name!r}: there is no such folder{suggestion(name)}")


def check_adapter(name: str, folder: Path) -> None:
    """Refuse the folder of an adapter that cannot be merged into a base model.

    Raises:
        LongRopeError: The folder has an ``adapter_config.json``.
    """
    if (folder / ADAPTER).is_file():
        raise adapter_error(name, _read(folder / ADAPTER), folder)


def check_hub_adapter(name: str) -> None:
    """Refuse the hub id of an adapter.

    Raises:
        LongRopeError: The hub, or its cache, has an ``adapter_config.json`` under this name.
    """
    path = find_file(name, ADAPTER)
    if path is not None:
        raise adapter_error(name, _read(path))


def adapter_error(name: str, fields: Mapping[str, Any], folder: Path | None = None) -> LongRopeError:
    """Return the error for an adapter in place of a model.

    Args:
        name: Name of the adapter.
        fields: Content of its ``adapter_config.json``.
        folder: Folder of the adapter; None for a hub id.
    """
    kind, base = str(fields.get("peft_type") or "LORA"), str(fields.get("base_model_name_or_path") or "BASE")
    adapter = "a LoRA adapter" if kind == "LORA" else f"an adapter ({kind})"
    fault = f"model = {name!r}: {ADAPTER} says that this is {adapter} of the model {base}, not a model."
    if kind not in MERGEABLE:
        return LongRopeError(f"{fault} An adapter of this kind cannot be merged. Give the base model.")
    if folder is None:
        return LongRopeError(f"{fault} Fetch it (hf download {name} --local-dir adapter), and give that folder.")
    return LongRopeError(
        f"{fault} Whole weights lie beside it. If the adapter is merged into them already, remove {ADAPTER}. "
        "If not, move the adapter into a folder of its own and give that."
    )


def tokenizer_error(folder: Path, message: str) -> str | None:
    """Return why the tokenizer of a folder cannot be read; None where the error is about something else.

    Args:
        folder: Folder of the model.
        message: Error of transformers.
    """
    if not any(word in message for word in ("tokenizer", "tiktoken", "sentencepiece", "SentencePiece")):
        return None
    present = [file for file in TOKENIZER_FILES if (folder / file).is_file()]
    if not present:
        return (
            "there is no tokenizer in this folder. Save the tokenizer of the base model there: "
            "AutoTokenizer.from_pretrained(BASE).save_pretrained(FOLDER)"
        )
    if "tokenizer.json" in present:
        return None
    package = "sentencepiece"
    if present[0] == "tokenizer.model" and TIKTOKEN_LINE.match((folder / present[0]).read_bytes()[:200]):
        package = "tiktoken"
    if not present[0].endswith(".model") or importlib.util.find_spec(package) is not None:
        return None
    return f"{present[0]} needs the package {package}, which is not installed. Run pip install {package}"


def check_rope_fields(name: str, folder: Path, message: str) -> None:
    """Refuse a config for its rope fields, where transformers' error is about these.

    Args:
        name: Name of the model, for the message.
        folder: Folder of the model.
        message: Error of transformers.

    Raises:
        LongRopeError: A rope field is wrong.
    """
    if "rope" in message and (fields := _read(folder / CONFIG)):
        try:
            extension_of_config(fields)
        except LongRopeError as error:
            raise LongRopeError(f"model = {name!r}: {error}") from None


def _first_lines(error: Exception) -> str:
    """Return the first line of an error of transformers, and the next if it ends in a colon."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)  # a KeyError quotes itself
    lines = [line.strip() for line in text.strip().splitlines()] or [type(error).__name__]
    return f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]


def _read(path: Path) -> Mapping[str, Any]:
    """Return the fields of a JSON file; empty if it is damaged."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, Mapping) else {}


def _folders_with(folder: Path, file: str) -> list[Path]:
    """Return the folders inside a folder that hold a file, the last written last."""
    return [path.parent for path in sorted(folder.glob(f"*/{file}"), key=lambda path: path.stat().st_mtime)]


def _snapshot(name: str) -> Path | None:
    """Return the folder of a hub model that has been fetched; None if there is none."""
    path = find_file(name, CONFIG, local_files_only=True)
    return None if path is None else path.parent


def suggestion(name: str) -> str:
    """Return ``; did you mean 'NAME'?`` with a built-in model or a model in the same folder; empty without one."""
    path = Path(name)
    files = [*path.parent.glob("*/config.json"), *path.parent.glob("*.gguf")]
    models = [file if file.suffix == ".gguf" else file.parent for file in files]
    close = get_close_matches(path.name, [model.name for model in models], n=1)
    if not close:
        return did_you_mean(name, BUILT_IN)
    return f"; did you mean {name[: len(name.rstrip('/')) - len(path.name)] + close[0]!r}?"
