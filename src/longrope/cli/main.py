"""The table of commands; the work's imports are inside the commands, so that ``--help`` loads no torch."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from longrope.cli import check, demo, evaluate, export, inspect, scale, search
from longrope.errors import LongRopeError

app = typer.Typer(
    help="Extend the context of a RoPE language model: find rescale factors, compare, export.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = {
    "inspect": inspect.run,
    "scale": scale.run,
    "search": search.run,
    "eval": evaluate.run,
    "export": export.run,
    "check": check.run,
    "demo": demo.run,
}
for name, function in COMMANDS.items():
    app.command(name)(function)


def main() -> None:
    """Run the command line; bad input ends with one line and exit code 2, an interrupt with 130."""
    try:
        app()
    except LongRopeError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="bold red", markup=False, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; what was finished is on disk (--resume continues a search)")
        sys.exit(130)
