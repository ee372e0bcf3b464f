"""The export formats, and the one function that writes a model in any of them."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from longrope.errors import LongRopeError, unknown
from longrope.export.exporter import Exporter, ExportOptions, ExportRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from longrope.scaling import Extension, Scaling


def export(
    model: PreTrainedModel | str | Path,
    tokenizer: PreTrainedTokenizerBase | None,
    scaling: Scaling | Extension,
    output: str | os.PathLike[str],
    *,
    to: str = "huggingface",
    mode: str = "static",
    options: ExportOptions | None = None,
) -> Extension:
    """Write a model with its factors as a checkpoint that other programs load.

    Args:
        model: Loaded model, plain or with these factors applied, or its name as for `longrope.load`.
        tokenizer: Tokenizer of a loaded model; None for a name.
        scaling: Extension of the model, or a scaling of some length, whose short set is then the original one.
        output: Folder or file to write; it appears whole or not at all.
        to: Export format, a key of `EXPORTERS`: ``huggingface`` or ``gguf``.
        mode: ``static`` (the long factors at every length) or ``dual`` (the short ones up to L0).
        options: Everything else.

    Returns:
        The extension as the checkpoint holds it.

    Raises:
        LongRopeError: The format cannot express the extension or the model, the output cannot be written, or it does
            not compute what the model computes with the factors.
    """
    from longrope.export.carried_factors import extension_to_write, has_applied_factors
    from longrope.models.load import load_config
    from longrope.models.peft_model import refuse_adapter
    from longrope.rope import Rope

    options = options or ExportOptions()
    model = str(model) if isinstance(model, Path) else model
    find_exporter(to, options.outtype)
    if isinstance(model, str):
        config, name = load_config(model, original_length=options.original_length), model
        rope, applied = Rope.of(config), False
    elif options.original_length is not None:
        raise LongRopeError(
            f"original_length = {options.original_length}: the model is loaded already. "
            "Give it to longrope.load, or the model's name."
        )
    else:
        refuse_adapter(model)
        config, name = model.config, getattr(model.config, "_name_or_path", "") or "model"
        rope, applied = Rope.of(model), has_applied_factors(model)
    request = ExportRequest(
        model,
        tokenizer,
        extension_to_write(config.to_dict(), scaling, rope, mode, applied=applied),
        Path(output),
        name=Path(name).resolve().name.removesuffix(".gguf"),
        mode=mode,
        options=options,
    )
    return EXPORTERS[to].write(request)


def find_exporter(to: str, outtype: str = "auto") -> Exporter:
    """Return the row of an export format.

    Raises:
        LongRopeError: The format is unknown, takes no outtype, or needs a package that is not installed.
    """
    if to not in EXPORTERS:
        raise unknown("to", to, EXPORTERS)
    exporter = EXPORTERS[to]
    if outtype != "auto" and not exporter.quantizes:
        formats = ", ".join(name for name, row in EXPORTERS.items() if row.quantizes)
        raise LongRopeError(f"outtype = {outtype!r}: {to} has none. Leave it out, or export to one of {formats}.")
    missing = [package for package in exporter.packages if importlib.util.find_spec(package) is None]
    if missing:
        packages = " ".join(missing)
        raise LongRopeError(f"to = {to!r}: it needs packages that are missing. Run pip install {packages}.")
    return exporter


def _write_huggingface(request: ExportRequest) -> Extension:
    from longrope.export.hf_config import refuse_quantized
    from longrope.export.huggingface import export_huggingface
    from longrope.models.load import load_config

    if isinstance(request.model, str):  # transformers may dequantise the weights, and then its config does not say so
        refuse_quantized(load_config(request.model).to_dict())
    model, tokenizer = request.load()
    return export_huggingface(
        model,
        tokenizer,
        request.extension,
        request.output,
        mode=request.mode,
        name=request.name,
        overwrite=request.options.overwrite,
        check=request.options.check,
    )


def _write_config(request: ExportRequest) -> Extension:
    from longrope.export.huggingface import export_config
    from longrope.models.adapter_folder import base_of
    from longrope.models.load import load_config, load_tokenizer

    length, generation_config = request.options.original_length, None
    if request.dtype != "auto":
        raise LongRopeError(f"dtype = {request.dtype!r}: a config alone has no weights. Leave dtype out.")
    if isinstance(request.model, str):
        if (base := base_of(request.model)) is not None:
            raise LongRopeError(
                f"model = {request.model!r}: the weights of an adapter on {base} are in no file yet, so a config alone "
                "has none. Export the whole checkpoint (format huggingface)."
            )
        config, tokenizer = load_config(request.model, original_length=length), load_tokenizer(request.model)
    else:
        config, tokenizer = request.model.config, request.tokenizer
        generation_config = request.model.generation_config
    if tokenizer is None:
        raise LongRopeError("tokenizer = None: a loaded model needs its tokenizer. Give it, or the model's name.")
    return export_config(
        config,
        tokenizer,
        request.extension,
        request.output,
        generation_config=generation_config,
        mode=request.mode,
        name=request.name,
        overwrite=request.options.overwrite,
    )


def _serve_config(request: ExportRequest, extension: Extension) -> list[str]:
    model = request.model if isinstance(request.model, str) else "MODEL"
    return [
        f"Config without weights: {request.output}",
        f"Copy the weights of {model} into this folder, or its files over those of a copy of {model}.",
    ]


def _serve_huggingface(request: ExportRequest, extension: Extension) -> list[str]:
    from longrope.engines.guide import launch_lines
    from longrope.export.hf_config import has_own_attention
    from longrope.export.model_card import OFF_FORMULA

    output, model = request.output, quote(request.model) if isinstance(request.model, str) else "MODEL"
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    decided = request.options.original_length
    chosen = "" if decided is None else f" --original-length {decided}"
    return [
        *([f"Note: {OFF_FORMULA}"] if has_own_attention(config) else []),
        f"Checkpoint: {output}   (compare it: longrope check {quote(str(output))} {model}{chosen})",
        *(f"  {line}" for line in launch_lines(config, extension, str(output))),
        f"What each engine will compute: {output / 'SERVING.md'}",
    ]


def _write_gguf(request: ExportRequest) -> Extension:
    from longrope.export.gguf.convert import choose_outtype, export_gguf, refuse_model
    from longrope.export.gguf.copy import extend_gguf
    from longrope.export.hf_config import for_mode
    from longrope.models.load import find_gguf, load_config

    mode, outtype, overwrite = request.mode, request.options.outtype, request.options.overwrite
    source = find_gguf(request.model) if isinstance(request.model, str) else None
    if source is not None:
        if outtype != "auto":
            raise LongRopeError(f"outtype = {outtype!r}: {source.name} keeps its quantisation. Leave outtype out.")
        if request.dtype != "auto":
            raise LongRopeError(f"dtype = {request.dtype!r}: {source.name} keeps its weights. Leave dtype out.")
        if request.options.original_length is not None:
            raise LongRopeError(
                f"original_length = {request.options.original_length}: {source.name} keeps its context_length. "
                "Export the checkpoint that it was made from."
            )
        return extend_gguf(source, request.extension, request.output, mode=mode, overwrite=overwrite)
    choose_outtype(outtype)
    if isinstance(request.model, str):  # refuse it before its weights are read
        refuse_model(load_config(request.model).to_dict(), for_mode(request.extension, mode))
    model, tokenizer = request.load()
    return export_gguf(
        model,
        tokenizer,
        request.extension,
        request.output,
        mode=mode,
        outtype=outtype,
        name=request.name,
        overwrite=overwrite,
    )


def _serve_gguf(request: ExportRequest, extension: Extension) -> list[str]:
    return [f"GGUF: {request.output}   (run it: llama-server -m {quote(str(request.output))} -c {extension.length})"]


EXPORTERS: dict[str, Exporter] = {
    "huggingface": Exporter(
        _write_huggingface,
        "a folder for transformers, vLLM, SGLang and others",
        folder=True,
        compared=True,
        next_steps=_serve_huggingface,
    ),
    "config": Exporter(
        _write_config,
        "the same folder without weights, for weights that are quantised or too large to load",
        folder=True,
        next_steps=_serve_config,
    ),
    "gguf": Exporter(
        _write_gguf,
        "a file for llama.cpp",
        packages=("gguf",),
        quantizes=True,
        next_steps=_serve_gguf,
    ),
}
