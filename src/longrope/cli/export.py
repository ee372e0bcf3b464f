"""``longrope export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longrope.cli import options
from longrope.errors import LongRopeError, unknown

if TYPE_CHECKING:
    from longrope.scaling import Extension

FORMS = ("huggingface", "gguf")


def run(
    model: options.Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the checkpoint, or the .gguf file.")],
    factors: Annotated[
        str | None,
        typer.Argument(help=f"{options.FACTORS} Not for MODELs that longrope extended."),
    ] = None,
    to: Annotated[str, typer.Option(help="huggingface, or gguf for llama.cpp.")] = "huggingface",
    mode: Annotated[
        str | None,
        typer.Option(help="static (long factors always; default with FACTORS) or dual (needs --attention none)."),
    ] = None,
    dtype: options.Dtype = "auto",
    outtype: Annotated[str, typer.Option(help="Of a GGUF's matrices: auto (as --dtype), f32, f16, q8_0 …")] = "auto",
    overwrite: options.Overwrite = False,
) -> None:
    """A checkpoint with the factors in it: a Hugging Face folder, or a GGUF file for llama.cpp.

    Without FACTORS, MODEL is a checkpoint that longrope exported, or the run folder of an extension, and --to is gguf.
    """
    from longrope.export.hf_config import MODES
    from longrope.storage.lock import claim_output, locked

    if to not in FORMS:
        raise unknown("to", to, FORMS)
    if mode not in (None, *MODES):
        raise unknown("mode", mode, MODES)
    if to == "huggingface" and factors is None:
        raise LongRopeError("FACTORS is missing; give the run folder of a search or a factors file after the model")
    if to == "huggingface" and outtype != "auto":
        raise LongRopeError(f"outtype = {outtype!r} is for --to gguf; a Hugging Face checkpoint takes --dtype")
    output = output if output.name else output.resolve()
    claim_output(output, overwrite=overwrite, folder=to == "huggingface")
    options.choose_device("cpu")  # quietens transformers
    weights, extension, mode = _what(model, factors, mode)
    with locked(output, folder=False):
        if to == "gguf":
            _write_gguf(weights, extension, output, mode, dtype, outtype, overwrite=overwrite)
        else:
            _write_folder(weights, extension, output, mode, dtype, overwrite=overwrite)


def _what(model: str, factors: str | None, mode: str | None) -> tuple[str, Extension, str]:
    """The weights' place, the extension, and the mode."""
    from longrope.formats.load_factors import load_extension
    from longrope.models.load import load_config
    from longrope.rope import Rope
    from longrope.scaling import as_extension

    if factors is not None:
        rope = Rope.of(load_config(model))
        extension = as_extension(options.read_factors(factors), rope, factors)
        return model, extension, mode or "static"
    folder = Path(model) / "checkpoint" if (Path(model) / "checkpoint").is_dir() else Path(model)
    if not (folder / "config.json").is_file() or not (folder / "extension.json").is_file():
        raise LongRopeError(f"{model} is nothing that longrope extended; give a run folder or a factors file after it")
    return str(folder), load_extension(folder), mode or "dual"


def _write_folder(model: str, extension: Extension, output: Path, mode: str, dtype: str, *, overwrite: bool) -> None:
    from longrope.engines.guide import launch_lines
    from longrope.export.hf_config import on_formula
    from longrope.export.huggingface import export_huggingface
    from longrope.export.model_card import OFF_FORMULA

    loaded, tokenizer = options.open_model(model, dtype, "cpu")
    name = options.short_name(model)
    extension = export_huggingface(loaded, tokenizer, extension, output, mode=mode, name=name, overwrite=overwrite)
    if not on_formula(extension):
        typer.echo(f"Note: {OFF_FORMULA}", err=True)
    typer.echo(f"Checkpoint: {output}   (compare it: longrope check {output} {model})", err=True)
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    for line in launch_lines(config, extension, str(output)):
        typer.echo(f"  {line}", err=True)
    typer.echo(f"What each engine will compute: {output / 'SERVING.md'}", err=True)


def _write_gguf(
    model: str, extension: Extension, output: Path, mode: str, dtype: str, outtype: str, *, overwrite: bool
) -> None:
    from longrope.export.gguf.convert import choose_outtype, export_gguf, refuse_model
    from longrope.export.gguf.copy import extend_gguf
    from longrope.models.load import find_gguf, load_config

    source = find_gguf(model)
    if source is not None:
        if outtype != "auto":
            raise LongRopeError(f"outtype = {outtype!r}: {source.name} keeps its quantisation; leave --outtype out")
        extension = extend_gguf(source, extension, output, mode=mode, overwrite=overwrite)
    else:
        choose_outtype(outtype)
        refuse_model(load_config(model).to_dict(), extension)
        loaded, tokenizer = options.open_model(model, dtype, "cpu")
        name = options.short_name(model)
        extension = export_gguf(
            loaded, tokenizer, extension, output, mode=mode, outtype=outtype, name=name, overwrite=overwrite
        )
    typer.echo(f"GGUF: {output}   (run it: llama-server -m {output} -c {extension.length})", err=True)
