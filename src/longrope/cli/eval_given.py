"""The options of ``longrope eval`` that have no effect without another one, or beside it."""

from __future__ import annotations

from collections.abc import Collection

import typer

from longrope.errors import LongRopeError

DEPENDENT = {  # by the option that they need, and how to give it
    "--retrieval passkey": ("retrieval_lengths", "trials", "quick", "questions", "depths", "chat", "ruler_data"),
    "--tasks hellaswag": ("task_folder", "limit"),
    "--output RUN": ("overwrite",),
    "--server http://localhost:8000": ("server_model", "concurrency", "timeout"),
}
LOCAL = (  # they need a model in this process
    *("factors", "checkpoint", "schemes", "stride", "key_tokens", "tasks", "task_folder", "limit", "measure"),
    *("batch", "dtype", "device"),
)


def given_options(context: typer.Context) -> set[str]:
    """Return the names of the parameters that the command line gives.

    Args:
        context: Context of the command.
    """
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def check_given(typed: Collection[str]) -> None:
    """Refuse options without effect.

    Args:
        typed: Names of the parameters that the command line gives.

    Raises:
        LongRopeError: An option has no effect without one that is missing or beside one that is given.
    """
    if unusable := [name for name in LOCAL if name in typed and "server" in typed]:
        raise LongRopeError(
            f"--server: a server runs retrieval tasks alone. Leave out {_options(unusable)}, or --server."
        )
    for remedy, names in DEPENDENT.items():
        needed = remedy.split()[0].removeprefix("--")
        idle = [name for name in names if name in typed]
        if idle and needed not in typed:
            raise LongRopeError(
                f"{needed} is missing: {_options(idle)} would have no effect. Give {remedy}, or leave "
                f"{'it' if len(idle) == 1 else 'them'} out."
            )
    if {"quick", "trials"} <= set(typed):
        raise LongRopeError("--quick and --trials exclude each other. Give one of them.")


def _options(names: Collection[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)
