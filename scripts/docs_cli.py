"""Write docs/reference/cli.md from the help of the command line. With ``--check``, check that it is up to date."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
from generated import write_or_check
from typer.core import TyperArgument, TyperGroup, TyperOption

from longrope.cli.main import COMMANDS, app

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"
VALUES = {int: "INTEGER", float: "NUMBER", Path: "PATH"}
PARAGRAPH = "\n\n"
HEAD = """\
# Command line

`python scripts/docs_cli.py` writes this page from `longrope COMMAND --help`. Lengths are in tokens: `16k` is 16,384,
and `2m` is 2,097,152. Invalid input prints one line that names the remedy and exits with 2; Ctrl-C exits with 130.

"""


def main() -> int:
    """Write the page, or with ``--check`` only compare it."""
    return write_or_check(PAGE, page(), "docs_cli.py")


def page() -> str:
    """Return the whole page: a table of commands, then one section per command."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    help_texts = {name: paragraphs(group.commands[name].help or "") for name in COMMANDS}
    rows = [f"| [`{name}`](#{name}) | {_line(text.partition(PARAGRAPH)[0])} |" for name, text in help_texts.items()]
    table = "\n".join(["| command | what it does |", "|---|---|", *rows])
    shown = {
        name: [param for param in group.commands[name].params if not getattr(param, "hidden", False)]
        for name in COMMANDS
    }
    sections = [section(name, help_texts[name], shown[name]) for name in COMMANDS]
    return HEAD + PARAGRAPH.join([table, *sections]) + "\n"


def paragraphs(help_text: str) -> str:
    """Return a help text with the lines of the page, not of a terminal."""
    text = inspect.cleandoc(help_text).replace("``", "`")
    return PARAGRAPH.join(textwrap.fill(part, 120, break_on_hyphens=False) for part in text.split(PARAGRAPH))


def section(name: str, help_text: str, parameters: Sequence[Any]) -> str:
    """Return the section of one command: usage, help, arguments and options."""
    types = get_type_hints(COMMANDS[name])
    arguments = {argument_word(arg): arg for arg in parameters if isinstance(arg, TyperArgument)}
    options = [option for option in parameters if isinstance(option, TyperOption)]
    words = [word if argument.required else f"[{word}]" for word, argument in arguments.items()]
    usage = " ".join(["longrope", name, "[OPTIONS]", *words])
    blocks = [f"## {name}", f"```\n{usage}\n```", help_text]
    if arguments:
        rows = [f"| `{word}` | {_line(argument.help)} |" for word, argument in arguments.items()]
        blocks.append("\n".join(["| argument | |", "|---|---|", *rows]))
    rows = [
        f"| {option_names(option, types[str(option.name)])} | {_line(option.help)} | {default(option)} |"
        for option in options
    ]
    blocks.append("\n".join(["| option | | default |", "|---|---|---|", *rows]))
    return PARAGRAPH.join(blocks)


def argument_word(argument: TyperArgument) -> str:
    """Return the word for an argument in the usage."""
    return (argument.metavar or str(argument.name).upper()) + ("..." if argument.nargs < 0 else "")


def option_names(option: TyperOption, type_: Any) -> str:
    """Return the names of an option and the kind of its value."""
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    value = next((word for known, word in VALUES.items() if known in (type_, *get_args(type_))), "TEXT")
    return names if option.is_flag else f"{names} {value}"


def default(option: TyperOption) -> str:
    """Return the default of an option as the table shows it."""
    if option.required:
        return "required"
    if option.is_flag:
        return f"`{option.opts[0] if option.default else option.secondary_opts[0]}`" if option.secondary_opts else ""
    return "" if option.default in (None, "") else f"`{option.default}`"


def _line(text: str | None) -> str:
    """Return a help text in one line of a table, as a terminal shows it: without rich's escapes of brackets."""
    return " ".join((text or "").split()).replace("\\[", "[").replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
