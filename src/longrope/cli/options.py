"""Options and steps that several commands share."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longrope.cli.table_names import listed, table_names
from longrope.errors import LongRopeError
from longrope.units import parse_length

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from longrope.rope import Rope
    from longrope.scaling import Extension, Scaling
    from longrope.stages.run_folder import StagedRun

BUILT_IN_NAMES = listed("longrope.models.load_errors", "BUILT_IN")
COMPARED_NAMES = ",".join(table_names("longrope.schemes", "COMPARED"))
DTYPE_NAMES = listed("longrope.models.load", "DTYPES")


def tidy_folder(model: str) -> str:
    """Return a folder's name without ./ and a slash at the end, so that a run resumes with and without them."""
    tidy = str(Path(model))
    with suppress(OSError, ValueError):  # a name that no path can have
        if model and Path(model).is_dir() and tidy not in table_names("longrope.models.load_errors", "BUILT_IN"):
            return tidy
    return model


Model = Annotated[
    str,
    typer.Argument(
        help=f"Hub id, folder (also of an adapter of peft), .gguf file, or a built-in model: {BUILT_IN_NAMES}.",
        callback=tidy_folder,
    ),
]
Length = Annotated[str, typer.Option("--length", "-l", help="Target length in tokens: 16k, 2m, 16384.")]
Data = Annotated[
    str | None,
    typer.Option(
        help="Documents: a folder, text, JSON records, .csv, .parquet, or stdlib (default: this Python's library)."
    ),
]
TextKey = Annotated[
    str | None, typer.Option(help="Key or column of the text in JSON, .csv and .parquet (default: text).")
]
Dtype = Annotated[
    str,
    typer.Option(help=f"{DTYPE_NAMES}. auto is the checkpoint's, or float32 on a CPU that is slow in bfloat16."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps …, or auto: the accelerator if there is one.")]
Batch = Annotated[int, typer.Option(min=1, help="Documents in one forward pass.")]
SplitSeed = Annotated[
    int, typer.Option(min=0, help="Seed of the split of the documents into search, held-out and test.")
]
Cache = Annotated[Path | None, typer.Option(help="Folder that keeps tokenized documents for later runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")]
OriginalLength = Annotated[
    str | None,
    typer.Option(help="L0 in tokens, where the checkpoint's fields are wrong or disagree (default: its own)."),
]
FACTORS = "Run folder of a search, or a factors file: longrope's, config.json, .csv, .gguf (docs/reading.md)."


def short_name(model: str) -> str:
    """Return the last part of a model's name, for folders and titles.

    >>> short_name("meta-llama/Llama-3.2-1B"), short_name("/models/a.gguf")
    ('Llama-3.2-1B', 'a')
    """
    return Path(model).name.removesuffix(".gguf")


def claim_file(output: Path | None, *, overwrite: bool) -> None:
    """Make sure that a command may write its output, if it has one.

    Raises:
        LongRopeError: The output exists and may not be replaced, or is missing with --overwrite.
    """
    from longrope.storage.lock import claim_output

    if output is not None:
        claim_output(output, overwrite=overwrite)
    elif overwrite:
        raise LongRopeError("output is missing: --overwrite would have no effect. Give -o FILE, or leave it out.")


def decided_length(original_length: str | None) -> int | None:
    """Return the tokens of --original-length; None without the option.

    Raises:
        LongRopeError: It is not a number of tokens.
    """
    return None if original_length is None else parse_length(original_length, "original_length")


def read_config(model: str, original_length: int | None) -> PreTrainedConfig:
    """Load a model's config, with another L0 if one is given; else say if the checkpoint's lengths disagree."""
    from longrope.cli import distributed
    from longrope.formats.length_source import contradiction
    from longrope.formats.lengths import checkpoint_lengths, disagreement
    from longrope.models.load import load_config
    from longrope.rope import Rope

    config = load_config(model, original_length=original_length)
    if original_length is None:
        rope = Rope.of(config)
        note, warning = disagreement(checkpoint_lengths(config), rope.original_length), contradiction(config, rope)
        if note:
            distributed.say(f"Note: {note}")
        if warning:
            distributed.say(f"Warning: {warning}.")
    return config


def rope_of_model(model: str | None, original_length: str | None) -> Rope | None:
    """Return the rope of --model, with another L0 if one is given; None without --model.

    Raises:
        LongRopeError: --original-length is not a number of tokens, or comes without a model.
    """
    from longrope.rope import Rope

    decided = decided_length(original_length)
    if model is not None:
        return Rope.of(read_config(model, decided))
    if decided is not None:
        raise LongRopeError(f"original_length = {decided}: it is a model's. Name the model with --model.")
    return None


def parse_schemes(text: str) -> list[str]:
    """Return the names of schemes in a list with commas.

    Raises:
        LongRopeError: If there is no such scheme.
    """
    from longrope.schemes import canonical

    return [canonical(name.strip()) for name in text.split(",")]


def open_model(
    name: str, dtype: str, device: str, original_length: int | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer without transformers' own progress bars."""
    from longrope.models.load import load

    return load(name, dtype=dtype, device=choose_device(device), original_length=original_length)


def choose_dtype(
    requested: str,
    config: PreTrainedConfig,
    device: str,
    check_memory: Callable[[str], None],
    *,
    recorded: str | None = None,
) -> str:
    """Return the dtype to load a model in; say on standard error why ``auto`` is not the checkpoint's, or is slow.

    Args:
        requested: The option --dtype.
        config: The model's config.
        device: The device's name.
        check_memory: Function of a dtype that raises LongRopeError if the command's passes do not fit in it.
        recorded: Dtype of the run that the command continues, which ``auto`` then means.

    Raises:
        LongRopeError: If the dtype is unknown.
    """
    from longrope.cli import distributed
    from longrope.cost.choose_dtype import choose_dtype

    dtype, reason = choose_dtype(requested, config, device, check_memory, recorded=recorded)
    if reason:
        distributed.say(f"Note: {reason}")
    return dtype


def choose_device(device: str) -> str:
    """Return a device's name, the accelerator's for ``auto`` if there is one; also quieten transformers."""
    import logging

    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from longrope.models.load import check_device, choose_device

    disable_progress_bar()
    set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a cast in every layer of every pass
    device = choose_device(device)
    check_device(device)
    return device


def command_line() -> str:
    """Return this command without the options that a resume may change: -o OUTPUT, --resume, --overwrite, --json."""
    command, words = ["longrope"], iter(sys.argv[1:])
    for word in words:
        if word in ("-o", "--output"):
            next(words, None)
        elif word not in ("--resume", "--overwrite", "--json") and not word.startswith(("-o", "--output=")):
            command.append(word)
    return shlex.join(command)


def tell(record: object, *, as_json: bool, text: Callable[[], None]) -> None:
    """Print a record as JSON, or call the function that prints it for people."""
    from longrope.storage.atomic import dumps

    if as_json:
        typer.echo(dumps(record), nl=False)
    else:
        text()


def read_factors(path: str) -> Scaling | Extension:
    """Read the factors of a run folder or of a file, as `longrope.formats.load_factors.load_factors` does.

    Raises:
        LongRopeError: If the search in the folder is not finished, or the file does not hold factors.
    """
    from longrope.cli import distributed
    from longrope.formats.load_factors import load_factors
    from longrope.scaling import Scaling

    if (Path(path) / "best.json").exists() and not (Path(path) / "extension.json").exists():
        raise LongRopeError(f"{path}: the search is not finished; go on with --resume, or use {path}/best.json")
    scaling = load_factors(path)
    note = (scaling if isinstance(scaling, Scaling) else scaling.long).provenance.get("note")
    if note:
        distributed.say(f"Note: {path}: {note}.")
    return scaling


def run_of(factors: str) -> StagedRun | None:
    """Return the run of an extension whose folder is given as factors; None for other factors."""
    from longrope.stages.run_folder import open_run

    return open_run(Path(factors)) if (Path(factors) / "plan.toml").exists() else None


def check_weights(model: str, factors: str) -> None:
    """Refuse a run's factors beside the model that the run has trained further, whose weights they do not fit.

    Raises:
        LongRopeError: If ``factors`` is the folder of such a run or its ``extension.json``, and ``model`` its model.
    """
    run = run_of(factors.removesuffix("extension.json"))
    if run is not None and model == run.model != run.final_weights:
        raise LongRopeError(
            f"factors = {factors!r} with {model}: this run has trained the weights, and these are the ones before. "
            f"Give {run.final_weights} as the model."
        )
