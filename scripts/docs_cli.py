"""Write docs/reference/cli.md from the command line's own help, or with ``--check`` see that it is up to date."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
from typer.core import TyperArgument, TyperGroup, TyperOption

from longrope.cli.main import COMMANDS, app

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"
VALUES = {int: "INTEGER", float: "NUMBER", Path: "PATH"}
PARAGRAPH = "\n\n"
HEAD = """\
# Command line

Made by `python scripts/docs_cli.py` from what `longrope COMMAND --help` says. Lengths are in tokens: `16k` is 16,384,
`2m` is 2,097,152. Bad input ends with one line that names the remedy, and exit code 2; an interrupt with 130.

"""


def main() -> int:
    """Write the page; with ``--check`` only compare."""
    text = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE.name} is not what --help says any more: run scripts/docs_cli.py", file=sys.stderr)
    return 1


def page() -> str:
    """The whole page: a table of commands, then one section each."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    told = {name: inspect.cleandoc(group.commands[name].help or "").replace("``", "`") for name in COMMANDS}
    rows = [f"| [`{name}`](#{name}) | {_line(text.partition(PARAGRAPH)[0])} |" for name, text in told.items()]
    table = "\n".join(["| command | what it does |", "|---|---|", *rows])
    sections = [section(name, told[name], group.commands[name].params) for name in COMMANDS]
    return HEAD + PARAGRAPH.join([table, *sections]) + "\n"


def section(name: str, told: str, parameters: Sequence[Any]) -> str:
    """One command: usage, help, arguments and options."""
    kinds = get_type_hints(COMMANDS[name])
    arguments = [one for one in parameters if isinstance(one, TyperArgument)]
    options = [one for one in parameters if isinstance(one, TyperOption)]
    words = {one.metavar or str(one.name).upper(): one for one in arguments}
    usage = ["longrope", name, "[OPTIONS]", *(word if one.required else f"[{word}]" for word, one in words.items())]
    parts = [f"## {name}", f"```\n{' '.join(usage)}\n```", told]
    if arguments:
        rows = [f"| `{word}` | {_line(one.help)} |" for word, one in words.items()]
        parts.append("\n".join(["| argument | |", "|---|---|", *rows]))
    rows = [f"| {spelt(one, kinds[str(one.name)])} | {_line(one.help)} | {default(one)} |" for one in options]
    parts.append("\n".join(["| option | | default |", "|---|---|---|", *rows]))
    return PARAGRAPH.join(parts)


def spelt(option: TyperOption, kind: Any) -> str:
    """An option's names, and what kind of value follows."""
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    value = next((word for type_, word in VALUES.items() if type_ in (kind, *get_args(kind))), "TEXT")
    return names if option.is_flag else f"{names} {value}"


def default(option: TyperOption) -> str:
    """An option's default, if there is one to tell."""
    if option.required:
        return "required"
    if option.is_flag:
        return f"`{option.opts[0] if option.default else option.secondary_opts[0]}`" if option.secondary_opts else ""
    return "" if option.default in (None, "") else f"`{option.default}`"


def _line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
