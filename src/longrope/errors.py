"""The one exception that longrope raises on purpose, and its warning about documents."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class LongRopeError(Exception):
    """Input that longrope cannot use; the message names the field, the value and the remedy.

    The command line prints the message and exits with code 2.
    """


class CorpusWarning(UserWarning):
    """A change to the documents that a person should know, such as files that are passed over.

    Args:
        message: The warning.
        severe: Whether the command line prints it in red.
    """

    def __init__(self, message: str, severe: bool = False) -> None:
        super().__init__(message)
        self.severe = severe


def unknown(field: str, value: str, known: Iterable[str], more: str = "") -> LongRopeError:
    """Return the error for an unknown name, with the known name that is most like it.

    >>> print(unknown("scheme", "yran", ["pi", "ntk", "yarn"]))
    scheme = 'yran' is unknown; choose one of pi, ntk, yarn; did you mean 'yarn'?
    """
    names = list(known)
    return LongRopeError(
        f"{field} = {value!r} is unknown; choose one of {', '.join(names)}{more}{did_you_mean(value, names)}"
    )


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'NAME'?`` with the most similar known name, or an empty string."""
    close = get_close_matches(value, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
