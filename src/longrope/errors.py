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


def suspect(dtype: str) -> str:
    """Return the sentence that names the likely cause of numbers that are not finite, and what to do.

    >>> suspect("float16")
    'The suspect is dtype = float16: use dtype float32 (--dtype float32).'
    """
    dtype = dtype.removeprefix("torch.")
    if dtype in ("float32", "float64"):
        return f"dtype = {dtype} has room for large numbers, so the suspects are the weights: load or train them again."
    return f"The suspect is {f'dtype = {dtype}' if dtype else 'the dtype'}: use dtype float32 (--dtype float32)."


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
    """Return ``; did you mean 'NAME'?`` with the most similar known name, or an empty string.

    >>> did_you_mean("YaRN", ["pi", "ntk", "yarn"])
    "; did you mean 'yarn'?"
    """
    names = {name.lower(): name for name in known}
    close = get_close_matches(value.lower(), names, n=1)
    return f"; did you mean {names[close[0]]!r}?" if close else ""
