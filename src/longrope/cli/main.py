"""The table of commands, which import torch inside, so that ``--help`` does not load it."""

from __future__ import annotations

import functools
import io
import os
import re
import sys
import warnings
from collections.abc import Callable
from inspect import get_annotations
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from longrope import __version__
from longrope.cli import (
    chat,
    check,
    compare_factors,
    demo,
    distributed,
    doctor,
    eval,
    export,
    extend,
    finetune,
    fit,
    generate,
    inspect,
    plan,
    probe,
    report,
    scale,
    search,
)
from longrope.cli.distributed import CONTROLS
from longrope.errors import CorpusWarning, LongRopeError
from longrope.storage.atomic import DISK_FULL

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")  # where Linux has them
LINE_BREAK = re.compile(r"(?<!\n)\n *(?=\S)")  # inside a paragraph
# typer has None as the default of its own flags, and imports pydantic to convert it before it shows a command's help
TYPERS_FLAGS = {"help": False, "install_completion": False, "show_completion": False}
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "default_map": TYPERS_FLAGS},
)
COMMANDS = {
    "inspect": inspect.run,
    "scale": scale.run,
    "fit": fit.run,
    "compare-factors": compare_factors.run,
    "search": search.run,
    "plan": plan.run,
    "extend": extend.run,
    "finetune": finetune.run,
    "eval": eval.run,
    "report": report.run,
    "export": export.run,
    "check": check.run,
    "probe": probe.run,
    "generate": generate.run,
    "chat": chat.run,
    "demo": demo.run,
    "doctor": doctor.run,
}


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command: bad input ends in one line and exit code 2, an interrupt in one line and exit code 130."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        console = Console(stderr=True, soft_wrap=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", CorpusWarning)
                warnings.showwarning = _printed(warnings.showwarning)
                command(*args, **kwargs)
        except (LongRopeError, OSError) as error:
            message = CONTROLS.sub("?", f"error: {_reason(error)}")
            console.print(message, style="bold red", markup=False, highlight=False)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            remedy = "; with -o, it continues with --resume" if "resume" in kwargs else ""
            console.print(f"interrupted{remedy}")
            raise typer.Exit(130) from None

    return run


def _reason(error: LongRopeError | OSError) -> str:
    """Return the message of a path that cannot be looked up, such as another user's, of a full disk, or of our error.

    Raises:
        OSError: The error is about neither.
    """
    if isinstance(error, LongRopeError):
        return str(error)
    if error.filename is None and error.errno not in DISK_FULL:
        raise error
    path = "" if error.filename is None else f"cannot use {error.filename}: "
    return f"{path}{error.strerror}"


def _printed(show: Callable[..., None]) -> Callable[..., None]:
    """Return a ``warnings.showwarning`` that prints each of our warnings once, as a note on standard error."""
    printed: set[str] = set()

    def show_warning(message: Warning | str, *context: Any, **options: Any) -> None:
        if not isinstance(message, CorpusWarning):
            show(message, *context, **options)
        elif distributed.first() and str(message) not in printed:
            printed.add(str(message))
            text = CONTROLS.sub("?", f"{'Warning' if message.severe else 'Note'}: {message}")
            style = "bold red" if message.severe else ""
            Console(stderr=True, soft_wrap=True).print(text, style=style, markup=False, highlight=False)

    return show_warning


def with_escaped_brackets(command: Callable[..., None]) -> Callable[..., None]:
    """Escape the brackets in a command's help, such as longrope[ray], which rich would read as markup and drop.

    The lines of each paragraph are joined, as a terminal breaks them at its own width.
    """
    command.__doc__ = _escaped(LINE_BREAK.sub(" ", command.__doc__ or ""))
    # typer would evaluate annotations that are text once more, and make other options of them
    command.__annotations__ = get_annotations(command, eval_str=True)
    for annotation in command.__annotations__.values():
        for parameter in getattr(annotation, "__metadata__", ()):
            parameter.help = _escaped(parameter.help or "")
    return command


def _escaped(text: str) -> str:
    return text if "\\[" in text else escape(text)  # options that commands share come several times


def print_version(requested: bool) -> None:
    """Print the version and end, if it is requested."""
    if requested:
        typer.echo(f"longrope {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=print_version)
    ] = False,
) -> None:
    """Extend the context of a RoPE language model: find rescale factors, compare, export."""


for name, function in COMMANDS.items():
    app.command(name)(guarded(with_escaped_brackets(function)))


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a file or pipe on Windows takes few characters
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of transformers would run into ours; those of downloads stay
    if HUGE_PAGES.exists():  # PyTorch reads this at its first large tensor (benchmarks/huge_pages.py)
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    app()
